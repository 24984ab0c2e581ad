#include "bindings/bind.h"
#include "device/cuda_lane.h"
#include "device/profiler_range.h"

namespace py = pybind11;

namespace pipert {

void bind_device(py::module_& module) {
  module.def("has_cuda_lanes", &has_cuda_lanes, "Whether CUDA sources are in this build.");
  module.def("has_profiler_ranges", &has_profiler_ranges, "Whether NVTX is in this build.");
}

}  // namespace pipert

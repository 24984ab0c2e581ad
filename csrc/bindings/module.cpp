#include "bindings/bind.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "pipert's native core.";
  pipert::bind_errors(module);
  pipert::bind_ir(module);
  pipert::bind_verify(module);
  pipert::bind_costs(module);
  pipert::bind_timeline(module);
  pipert::bind_drawings(module);
  pipert::bind_schedule(module);
  pipert::bind_search(module);
  pipert::bind_partition(module);
  pipert::bind_plan(module);
  pipert::bind_proof(module);
  pipert::bind_device(module);
  pipert::bind_random(module);
  pipert::bind_transport(module);
  pipert::bind_native(module);
  pipert::bind_replay(module);
  pipert::bind_recorder(module);
  pipert::bind_runtime(module);
  pipert::bind_rehearsal(module);
  pipert::bind_probe(module);
  pipert::bind_kernels(module);
}

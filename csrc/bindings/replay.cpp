#include "bindings/replay.h"

#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "device/current_stream.h"

namespace py = pybind11;

namespace pipert {

Replay::Replay(std::shared_ptr<PassConditions> conditions, Recorded recorded, py::object prepare,
               py::object launch, std::shared_ptr<LastStream> last)
    : conditions_(std::move(conditions)),
      recorded_(std::move(recorded)),
      prepare_(std::move(prepare)),
      launch_(std::move(launch)),
      last_(std::move(last)) {}

std::optional<std::vector<at::Tensor>> Replay::run(const py::tuple& batch) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(batch.size());
  for (const auto& object : batch) {
    if (!THPVariable_CheckExact(object.ptr())) return std::nullopt;
    tensors.push_back(THPVariable_Unpack(object.ptr()));
  }
  if (!recorded_.inputs->fits(tensors)) return std::nullopt;
  prepare();
  std::vector<at::Tensor> results;
  {
    const py::gil_scoped_release no_gil;  // a device that has much to do lets a launch wait
    // First, since there may be no memory: a pass that fails has added nothing to gradients.
    results = recorded_.results->room();
    recorded_.inputs->fill(tensors);
  }
  launch_();
  conditions_->leaves().set_gradients(recorded_.gradients);
  const py::gil_scoped_release no_gil;
  recorded_.results->read(results);
  return results;
}

void Replay::prepare() {
  const c10::Device& device = conditions_->device();
  CUstream_st* const stream = device.is_cuda() ? current_stream(device) : nullptr;
  if (last_->is_set && last_->stream == stream) return;
  prepare_();
  *last_ = {stream, true};
}

}  // namespace pipert

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "autograd/leaves.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Gradients = std::vector<std::optional<at::Tensor>>;

Gradients gradients(const Leaves& leaves) {
  Gradients result;
  for (at::Tensor& gradient : leaves.gradients()) {
    result.emplace_back();
    if (gradient.defined()) result.back() = std::move(gradient);
  }
  return result;
}

void set_gradients(Leaves& leaves, const Gradients& given) {
  std::vector<at::Tensor> gradients;
  gradients.reserve(given.size());
  for (const auto& gradient : given) gradients.push_back(gradient.value_or(at::Tensor()));
  leaves.set_gradients(gradients);
}

}  // namespace

void bind_leaves(py::module_& module) {
  py::class_<Leaves>(module, "Leaves",
                     "Parameters and buffers, and where they and their gradients lie. What "
                     "pipert/captured.py compares; not for users.")
      .def(py::init<std::vector<at::Tensor>>(), py::arg("tensors"))
      .def("fingerprint", &Leaves::fingerprint)
      .def("gradients", &gradients)
      .def("set_gradients", &set_gradients, py::arg("gradients"));
}

}  // namespace pipert

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "autograd/leaves.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Which objects stand in some dicts, modules' `_parameters` and `_buffers`: a tensor that is put in
// another's place may well lie where that lay.
std::uint64_t fingerprint_of(const std::vector<py::dict>& dicts) {
  std::uint64_t value = 0;
  for (const py::dict& dict : dicts) {
    for (const auto& [name, object] : dict)
      value = (value ^ reinterpret_cast<std::uintptr_t>(object.ptr())) * 0x100000001b3;
  }
  return value;
}

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
  module.def("fingerprint_of", &fingerprint_of, py::arg("dicts"),
             "Differs when another object stands in one of the dicts.");
  py::class_<Leaves>(module, "Leaves",
                     "Parameters and buffers, and where they and their gradients lie. What "
                     "pipert/captured.py compares; not for users.")
      .def(py::init<std::vector<at::Tensor>>(), py::arg("tensors"))
      .def("fingerprint", &Leaves::fingerprint)
      .def("gradients", &gradients)
      .def("set_gradients", &set_gradients, py::arg("gradients"));
}

}  // namespace pipert

#include "bindings/pass_conditions.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <unordered_set>
#include <utility>

namespace py = pybind11;

namespace pipert {
namespace {

// Each once: two stages may share a weight.
std::vector<at::Tensor> tensors_of(const std::vector<py::dict>& dicts,
                                   const std::vector<at::Tensor>& others) {
  std::vector<at::Tensor> tensors;
  std::unordered_set<const PyObject*> seen;
  for (const py::dict& dict : dicts) {
    for (const auto& [name, object] : dict) {
      if (THPVariable_Check(object.ptr()) && seen.insert(object.ptr()).second)
        tensors.push_back(THPVariable_Unpack(object.ptr()));
    }
  }
  tensors.insert(tensors.end(), others.begin(), others.end());
  return tensors;
}

void add_modes(Fingerprint& fingerprint, c10::DeviceType type) {
  fingerprint.add(at::autocast::is_autocast_enabled(type));
  fingerprint.add(static_cast<std::uint64_t>(at::autocast::get_autocast_dtype(type)));
  const at::Context& context = at::globalContext();
  // By backend: float32MatmulPrecision() refuses where somebody has set that of one alone.
  using enum at::Float32Op;
  for (const at::Float32Op op : {MATMUL, CONV, RNN}) {
    fingerprint.add(
        static_cast<std::uint64_t>(context.float32Precision(at::Float32Backend::CUDA, op)));
  }
  fingerprint.add(context.deterministicAlgorithms());
  fingerprint.add(static_cast<std::uint64_t>(c10::get_default_dtype_as_scalartype()));
}

}  // namespace

PassConditions::PassConditions(std::vector<py::dict> dicts, std::vector<py::dict> attributes,
                               const std::vector<at::Tensor>& others, const c10::Device& device)
    : dicts_(std::move(dicts)),
      attributes_(std::move(attributes)),
      device_(device),
      leaves_(tensors_of(dicts_, others)),
      first_objects_(objects()) {}

// Objects, not addresses of memory alone: a tensor that is put in another's place may well lie
// where that lay.
std::uint64_t PassConditions::objects() const {
  Fingerprint fingerprint;
  for (const py::dict& dict : dicts_) {
    for (const auto& [name, object] : dict) fingerprint.add_address(object.ptr());
  }
  return fingerprint.value();
}

std::optional<std::uint64_t> PassConditions::state() const {
  if (objects() != first_objects_) return std::nullopt;
  static const PyObject* const training = PyUnicode_InternFromString("training");
  Fingerprint fingerprint;
  fingerprint.add(first_objects_);
  leaves_.add_to(fingerprint);
  for (const py::dict& attributes : attributes_)
    fingerprint.add_address(
        PyDict_GetItemWithError(attributes.ptr(), const_cast<PyObject*>(training)));
  add_modes(fingerprint, device_.type());
  return fingerprint.value();
}

}  // namespace pipert

#include "bindings/exported_call.h"

#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>

#include "autograd/gradient_sink.h"
#include "base/error.h"
#include "base/index.h"
#include "bindings/native_program.h"
#include "bindings/python_body.h"
#include "bindings/python_tree.h"

namespace py = pybind11;

namespace pipert {
namespace {

// The parts of the input as Python values; null where absent.
std::vector<py::object> values_of(const NativeInput& input) {
  std::vector<py::object> values;
  auto next = input.tensors.begin();
  for (const InputPart& part : input.parts) {
    const auto end = next + static_cast<std::ptrdiff_t>(num_tensors(part));
    values.push_back(part.present ? unflatten({next, end}, part.structure.get()) : py::object());
    next = end;
  }
  return values;
}

py::tuple call_export(const PythonFunction& function, const NativeInput& example) {
  const std::vector<py::object> values = values_of(example);
  py::tuple args;
  py::object kwargs = py::dict();
  switch (function.role) {
    case PythonFunction::Role::kStage:
      args = PythonBody::positional(values[0], function.spread);
      if (values[1]) kwargs = values[1];
      break;
    case PythonFunction::Role::kLoss:
      args = py::make_tuple(values[0]);
      if (values[1]) args = py::make_tuple(values[0], values[1]);
      if (values[2] && !values[2].is_none()) kwargs = values[2];
      break;
  }
  return py::module_::import("pipert.native").attr("export")(function.callable, args, kwargs);
}

// Its Python object, if there is one. torch renamed the way to it.
template <typename Slot>
PyObject* object_of(const Slot& slot) {
  if constexpr (requires { slot.load_pyobj(); }) {
    return slot.load_pyobj();
  } else {
    const std::optional<PyObject*> found = slot.check_pyobj();
    return found.value_or(nullptr);
  }
}

}  // namespace

NativeInput example_of(const InputSignature& signature) {
  NativeInput example;
  example.parts = signature.parts;
  std::vector<bool> requires_grad;
  for (const TensorSignature& tensor : signature.tensors) {
    example.tensors.push_back(
        at::empty_strided(tensor.sizes, tensor.strides,
                          at::TensorOptions().dtype(tensor.dtype).device(tensor.device)));
    requires_grad.push_back(tensor.requires_grad);
  }
  attach_sink(example.tensors, requires_grad);
  for (std::size_t i = 0; i < example.tensors.size(); ++i)
    example.tensors[i] = example.tensors[signature.first_positions[i]];
  return example;
}

ExportedCall export_call(const PythonFunction& function, const NativeInput& example) {
  const py::tuple made = call_export(function, example);
  ExportedCall call;
  call.graph = py::cast<std::shared_ptr<NativeGraph>>(made[0]);
  const FlatValue output = flatten(py::object(made[1]).ptr(), "the output");
  if (output.tensors.size() != as_index(call.graph->num_outputs()))
    throw ValueError(concat("torch.export gave a graph of ", call.graph->num_outputs(),
                            " outputs for a call of ", output.tensors.size()));
  call.output = output.structure;
  for (const py::handle source : made[2]) {
    const auto pair = py::cast<py::tuple>(source);
    call.sources.emplace_back(pair[0], pair[1]);
    const auto tensor = py::cast<at::Tensor>(py::object(pair[0][pair[1]]));
    call.parameters.emplace_back(tensor);
    call.graph->set_parameter(static_cast<int>(call.sources.size()) - 1, tensor);
  }
  call.check = InputCheck(size_steps_of(py::cast<py::list>(made[3])),
                          py::cast<std::vector<std::uint32_t>>(made[4]));
  call.check.set_example(InputSignature(example));
  if (!call.check.accepts(example)) throw ValueError("torch.export gave a graph for other inputs");
  return call;
}

void ExportedCall::refresh() {
  is_usable = true;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto& [owner, name] = sources[i];
    PyObject* found = PyDict_GetItemWithError(owner.ptr(), name.ptr());
    PyErr_Clear();
    // Subclasses may do what they like.
    is_usable = found != nullptr && THPVariable_CheckExact(found) &&
                parameters[i].describes(THPVariable_Unpack(found));
    if (!is_usable) return;
    const at::Tensor& tensor = THPVariable_Unpack(found);
    const int index = static_cast<int>(i);
    if (!graph->parameter(index).is_same(tensor)) graph->set_parameter(index, tensor);
  }
}

bool ExportedCall::has_parameter_in(const std::vector<at::Tensor>& inputs) const {
  for (int i = 0; i < graph->num_parameters(); ++i) {
    const at::Tensor& parameter = graph->parameter(i);
    if (std::any_of(inputs.begin(), inputs.end(),
                    [&](const at::Tensor& input) { return input.is_same(parameter); }))
      return true;
  }
  return false;
}

std::string reason_against(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != at::kStrided)
    return "an input is sparse, or of another layout without strides";
  if (tensor.is_conj() || tensor.is_neg())
    return "an input is conjugated, or negated, where it is read";
  // It lives as long as the tensor, and keeps its type: there is no need for the GIL.
  PyObject* object = object_of(*tensor.unsafeGetTensorImpl()->pyobj_slot());
  if (object != nullptr && reinterpret_cast<PyObject*>(Py_TYPE(object)) != THPVariableClass)
    return concat("an input is a ", Py_TYPE(object)->tp_name);
  return {};
}

}  // namespace pipert

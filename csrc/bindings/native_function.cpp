#include "bindings/native_function.h"

#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <utility>

#include "autograd/gradient_sink.h"
#include "base/error.h"
#include "base/index.h"
#include "bindings/native_program.h"
#include "bindings/python_body.h"
#include "bindings/python_tree.h"

namespace py = pybind11;

namespace pipert {
namespace {

// An export takes a good part of a second: inputs that never repeat shall not make one each step.
constexpr std::size_t kMaxGraphs = 32;
constexpr std::size_t kMaxStates = 32;
constexpr const char* kUnseen = "no graph yet for inputs like these";
constexpr const char* kBusy =
    "no graph yet: another pipeline of this process was running, and exports must be alone";

bool same_tensors(const std::vector<at::Tensor>& tensors,
                  const std::vector<TensorSignature>& signatures) {
  if (tensors.size() != signatures.size()) return false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!(TensorSignature(tensors[i]) == signatures[i])) return false;
  }
  return true;
}

// Tensors like those noted, as a stage sees them: what needs a gradient is no leaf.
NativeInput example_of(const NativeInput& structure,
                       const std::vector<TensorSignature>& signatures) {
  NativeInput example;
  example.parts = structure.parts;
  std::vector<bool> requires_grad;
  for (const TensorSignature& signature : signatures) {
    example.tensors.push_back(
        at::empty_strided(signature.sizes, signature.strides,
                          at::TensorOptions().dtype(signature.dtype).device(signature.device)));
    requires_grad.push_back(signature.requires_grad);
  }
  attach_sink(example.tensors, requires_grad);
  return example;
}

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

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

NativeFunction::NativeFunction(Role role, py::object callable, bool spread)
    : role_(role), callable_(std::move(callable)), spread_(spread) {}

NativeFunction::~NativeFunction() {
  const py::gil_scoped_acquire gil;
  callable_ = {};
  states_.clear();
  calls_.clear();
}

void NativeFunction::prepare(bool may_export) {
  reason_.clear();
  was_used_ = false;
  may_export_ = may_export;
  look_at_state();
  if (state_ < 0) return;
  for (ExportedCall& call : calls_) refresh(call);
  if (!may_export) return;
  for (Noted& noted : noted_) {
    if (noted.state == state_ && noted.failure.empty()) export_noted(noted);
  }
  std::erase_if(noted_, [this](const Noted& noted) {
    return noted.state == state_ && noted.failure.empty();
  });
}

void NativeFunction::look_at_state() {
  const py::module_ native = py::module_::import("pipert.native");
  const py::object state = native.attr("state_of")(callable_);
  const int before = std::exchange(state_, -1);
  refusal_.clear();
  unseen_ = kUnseen;
  if (py::isinstance<py::str>(state)) {
    refusal_ = py::cast<std::string>(state);
    return;
  }
  const auto known = std::find_if(states_.begin(), states_.end(),
                                  [&](const py::object& other) { return other.equal(state); });
  state_ = static_cast<int>(known - states_.begin());
  if (known != states_.end()) return;
  if (before >= 0) {
    const auto changed =
        py::cast<std::string>(native.attr("difference")(states_[as_index(before)], state));
    if (!changed.empty())
      unseen_ = concat("no graph yet: since the last pass attributes changed: ", changed);
  }
  if (states_.size() < kMaxStates) {
    states_.push_back(state);
  } else {
    state_ = -1;
    refusal_ =
        concat("its modules' attributes and modes were in more than ", kMaxStates, " states");
  }
}

void NativeFunction::refresh(ExportedCall& call) const {
  call.is_usable = call.state == state_;
  if (!call.is_usable) return;
  for (std::size_t i = 0; i < call.sources.size(); ++i) {
    const auto& [owner, name] = call.sources[i];
    PyObject* found = PyDict_GetItemWithError(owner.ptr(), name.ptr());
    PyErr_Clear();
    call.is_usable = found != nullptr && THPVariable_Check(found) &&
                     TensorSignature(THPVariable_Unpack(found)) == call.parameters[i];
    if (!call.is_usable) return;
    const at::Tensor& tensor = THPVariable_Unpack(found);
    const int index = static_cast<int>(i);
    if (!call.graph->parameter(index).is_same(tensor)) call.graph->set_parameter(index, tensor);
  }
}

void NativeFunction::export_noted(Noted& noted) {
  const NativeInput example = example_of(noted.structure, noted.tensors);
  if (fitting(example) != nullptr) return;  // an export of this pass fits it too
  try {
    ExportedCall call = make_graph(noted, example);
    if (call.check.accepts(example)) {
      calls_.push_back(std::move(call));
    } else {
      noted.failure = "torch.export gave a graph for other inputs";
    }
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_KeyboardInterrupt)) throw;
    noted.failure = first_line(py::cast<std::string>(py::str(error.value())));
  } catch (const std::exception& error) {
    noted.failure = first_line(error.what());
  }
  if (!calls_.empty() && noted.failure.empty()) refresh(calls_.back());
}

ExportedCall NativeFunction::make_graph(const Noted& noted, const NativeInput& example) const {
  const std::vector<py::object> values = values_of(example);
  py::tuple args;
  py::object kwargs = py::dict();
  if (role_ == Role::kStage) {
    args = PythonBody::positional(values[0], spread_);
    if (values[1]) kwargs = values[1];
  } else {
    args = py::make_tuple(values[0]);
    if (values[1]) args = py::make_tuple(values[0], values[1]);
    if (values[2] && !values[2].is_none()) kwargs = values[2];
  }
  const py::tuple made =
      py::module_::import("pipert.native").attr("export")(callable_, args, kwargs);
  ExportedCall call;
  call.state = noted.state;
  call.graph = py::cast<std::shared_ptr<NativeGraph>>(made[0]);
  const FlatValue output = flatten(py::object(made[1]).ptr(), "the output");
  if (output.tensors.size() != as_index(call.graph->num_outputs()))
    throw ValueError(concat("torch.export gave a graph of ", call.graph->num_outputs(),
                            " outputs for a call of ", output.tensors.size()));
  if (role_ == Role::kLoss && output.structure != nullptr)
    throw ValueError("it returns more than one tensor");
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
  call.check.set_example(example);
  return call;
}

ExportedCall* NativeFunction::fitting(const NativeInput& input) {
  for (ExportedCall& call : calls_) {
    if (call.is_usable && call.check.accepts(input)) return &call;
  }
  return nullptr;
}

ExportedCall* NativeFunction::find(const NativeInput& input) {
  was_used_ = true;
  if (state_ < 0) {
    reason_ = refusal_;
    return nullptr;
  }
  if (ExportedCall* call = fitting(input)) return call;
  for (const at::Tensor& tensor : input.tensors) {
    if (tensor.defined() && tensor.layout() == at::kStrided) continue;
    reason_ = "an input is sparse, or of another layout without strides";
    return nullptr;
  }
  for (const Noted& noted : noted_) {
    if (noted.state != state_ || !same_tensors(input.tensors, noted.tensors) ||
        !same_structure(input, noted.structure))
      continue;
    reason_ = noted.failure;
    if (reason_.empty()) reason_ = may_export_ ? unseen_ : kBusy;
    return nullptr;
  }
  if (calls_.size() + noted_.size() >= kMaxGraphs) {
    reason_ = concat("it has met more than ", kMaxGraphs, " kinds of input");
    return nullptr;
  }
  reason_ = unseen_;
  Noted noted;
  noted.state = state_;
  noted.structure.parts = input.parts;
  for (const at::Tensor& tensor : input.tensors) noted.tensors.emplace_back(tensor);
  noted_.push_back(std::move(noted));
  return nullptr;
}

std::string NativeFunction::kind() const {
  if (!reason_.empty()) return concat("module: ", reason_);
  return was_used_ ? "native" : concat("module: ", kUnseen);
}

}  // namespace pipert

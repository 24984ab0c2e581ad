#include "bindings/native_function.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {
namespace {

constexpr std::size_t kMaxGraphs = 32;  // of a state
constexpr std::size_t kMaxStates = 32;
// An export takes a good part of a second, so what changes all the time shall not make one all the
// time: after so many, an input must have come in as many passes.
constexpr int kFreeExports = 32;
constexpr const char* kUnseen = "no graph yet for inputs like these";
constexpr const char* kBusy =
    "no graph yet: another pipeline of this process was running, and exports must be alone";

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

NativeFunction::NativeFunction(PythonFunction function) : function_(std::move(function)) {}

NativeFunction::~NativeFunction() {
  const py::gil_scoped_acquire gil;
  function_.callable = {};
  states_.clear();
}

void NativeFunction::prepare(bool may_export) {
  reason_.clear();
  was_used_ = false;
  may_export_ = may_export;
  ++pass_;
  look_at_state();
  if (state_ == nullptr) return;
  for (ExportedCall& call : state_->calls) call.refresh();
  if (!may_export) return;
  for (Noted& noted : state_->noted) {
    const int wait = num_exports_ < kFreeExports ? 1 : kFreeExports;
    if (noted.failure.empty() && noted.num_passes >= wait) export_noted(noted);
  }
  std::erase_if(state_->noted, [](const Noted& noted) { return noted.has_graph; });
}

void NativeFunction::look_at_state() {
  const py::module_ native = py::module_::import("pipert.native");
  const py::object value = native.attr("state_of")(function_.callable);
  const State* before = std::exchange(state_, nullptr);
  refusal_.clear();
  unseen_ = kUnseen;
  if (py::isinstance<py::str>(value)) {
    refusal_ = py::cast<std::string>(value);
    return;
  }
  const auto known = std::find_if(states_.begin(), states_.end(),
                                  [&](const State& other) { return other.value.equal(value); });
  if (known != states_.end()) {
    states_.splice(states_.begin(), states_, known);
    state_ = &states_.front();
    return;
  }
  if (before != nullptr) {
    const auto changed = py::cast<std::string>(native.attr("difference")(before->value, value));
    if (!changed.empty())
      unseen_ = concat("no graph yet: since the last pass attributes changed: ", changed);
  }
  if (states_.size() == kMaxStates) states_.pop_back();
  states_.push_front({.value = value, .calls = {}, .noted = {}});
  state_ = &states_.front();
}

void NativeFunction::export_noted(Noted& noted) {
  try {
    const NativeInput example = example_of(noted.input);
    if (fitting(example) == nullptr) {  // an export of this pass may fit it too
      ++num_exports_;
      state_->calls.push_back(export_call(function_, example));
      state_->calls.back().refresh();
    }
    noted.has_graph = true;
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // Ctrl-C
    noted.failure = first_line(py::cast<std::string>(py::str(error.value())));
  } catch (const std::exception& error) {
    noted.failure = first_line(error.what());
  }
}

ExportedCall* NativeFunction::fitting(const NativeInput& input) {
  for (ExportedCall& call : state_->calls) {
    if (call.is_usable && call.check.accepts(input)) return &call;
  }
  return nullptr;
}

ExportedCall* NativeFunction::find(const NativeInput& input) {
  was_used_ = true;
  if (state_ == nullptr) {
    reason_ = refusal_;
    return nullptr;
  }
  for (const at::Tensor& tensor : input.tensors) {
    std::string against = reason_against(tensor);
    if (against.empty()) continue;
    reason_ = std::move(against);
    return nullptr;
  }
  ExportedCall* call = fitting(input);
  if (call == nullptr) {
    reason_ = note(input);
    return nullptr;
  }
  if (!call->has_parameter_in(input.tensors)) return call;
  reason_ = "an input is also one of its parameters or buffers";
  return nullptr;
}

std::string NativeFunction::note(const NativeInput& input) {
  auto& all = state_->noted;
  auto found = std::find_if(all.begin(), all.end(),
                            [&](const Noted& noted) { return noted.input.describes(input); });
  if (found == all.end()) {
    if (state_->calls.size() + all.size() >= kMaxGraphs)
      return concat("it has met more than ", kMaxGraphs, " kinds of input");
    all.emplace_back().input = InputSignature(input);
    found = std::prev(all.end());
  }
  if (std::exchange(found->last_pass, pass_) != pass_) ++found->num_passes;
  if (!found->failure.empty()) return found->failure;
  return found->num_passes > 1 && !may_export_ ? kBusy : unseen_;
}

std::string NativeFunction::kind() const {
  if (!reason_.empty()) return concat("module: ", reason_);
  return was_used_ ? "native" : concat("module: ", kUnseen);
}

}  // namespace pipert

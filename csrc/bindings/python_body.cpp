#include "bindings/python_body.h"

#include <torch/csrc/autograd/python_variable.h>

#include "base/error.h"
#include "base/index.h"
#include "bindings/python_context.h"
#include "bindings/python_tree.h"
#include "bindings/python_turn.h"
#include "random/rank_generator.h"

namespace py = pybind11;

namespace pipert {
namespace {

// The entry of one microbatch; taken out, so that it is freed as soon as it has been used, unless
// it is needed again.
py::object entry_of(std::vector<BatchPiece>& entries, Microbatch microbatch, bool is_kept) {
  return entries.empty() ? py::object() : entries[as_index(microbatch)].get(is_kept);
}

py::object or_none(const py::object& value) { return value ? value : py::none(); }

py::object call(const py::object& callable, const py::tuple& args, const py::object& kwargs) {
  PyObject* result = PyObject_Call(callable.ptr(), args.ptr(), kwargs.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// The GIL, in this rank's turn.
class GilHold final : public BodyHold {
 private:
  PythonTurn turn_;  // before the GIL, so that a rank that waits for its turn doesn't have it
  py::gil_scoped_acquire gil_;
};

}  // namespace

py::object BatchPiece::get(bool is_kept) {
  if (flat.has_value()) return unflatten(flat->tensors, flat->structure.get());
  return is_kept ? object : std::move(object);
}

PythonBody::PythonBody(StagePosition position, const PythonStage& stage, py::object loss_fn)
    : position_(position),
      callable_(stage.callable),
      spread_(stage.spread),
      loss_fn_(std::move(loss_fn)),
      output_name_(concat("stage ", position.stage, "'s output")),
      context_keywords_(stage.context_keywords.begin(), stage.context_keywords.end()),
      buffers_({callable_, loss_fn_}) {}

PythonBody::~PythonBody() {
  const py::gil_scoped_acquire gil;
  callable_ = {};
  loss_fn_ = {};
  context_keywords_.clear();
  batch_ = {};
  buffers_ = ModuleBuffers({});
  snapshots_.clear();
  outputs_.clear();
  metrics_.clear();
}

void PythonBody::set_batch(BodyBatch batch) {
  batch_ = std::move(batch);
  snapshots_.clear();
  buffers_.forget_modules();
}

BodyResult PythonBody::forward(const RunContext& context, BodyInput input) {
  auto hold = PythonBody::hold();
  const BodyRun kind = input.run;
  Call call = take_call(context, std::move(input));
  BodyResult result = kind == BodyRun::kFirst   ? run_first(context, std::move(call))
                      : kind == BodyRun::kAgain ? run_again(context, std::move(call))
                                                : run(context, std::move(call), kind);
  result.hold = std::move(hold);
  return result;
}

BodyResult PythonBody::run(const RunContext& context, Call given, BodyRun kind) {
  BodyResult result;
  const py::object output = call_stage(given);
  if (!position_.is_last) {
    FlatValue flat = flatten(output.ptr(), output_name_);
    result.tensors = std::move(flat.tensors);
    result.structure = std::move(flat.structure);
    return result;
  }
  if (kind != BodyRun::kAgain) keep_output(context, output);
  if (batch_.compute_loss) result.loss = take_loss(context, kind, call_loss(output, given.target));
  return result;
}

BodyResult PythonBody::run_first(const RunContext& context, Call given) {
  ModuleBuffers::Snapshot snapshot = buffers_.save();
  // The batch's own; what the stage before sent is watched by the ModuleStage.
  const py::tuple own = py::make_tuple(position_.is_first ? given.args : py::tuple(),
                                       or_none(given.kwargs), or_none(given.target));
  const auto lent =
      py::reinterpret_steal<py::tuple>(copy_containers(own, changes_arguments_).release());
  if (position_.is_first) given.args = lent[0];
  if (given.kwargs) given.kwargs = lent[1];
  if (given.target) given.target = lent[2];
  const std::uint64_t before = sum_of_versions(own);
  BodyResult result = run(context, std::move(given), BodyRun::kFirst);
  const bool changed = sum_of_versions(own) != before;
  changes_arguments_ = changes_arguments_ || changed;
  result.can_run_again = buffers_.settle(snapshot) && !changed;
  if (result.can_run_again) snapshots_[context.microbatch] = std::move(snapshot);
  return result;
}

BodyResult PythonBody::run_again(const RunContext& context, Call given) {
  const auto found = snapshots_.find(context.microbatch);
  const RewoundBuffers rewound(std::move(found->second));
  snapshots_.erase(found);
  return run(context, std::move(given), BodyRun::kAgain);
}

PythonBody::Call PythonBody::take_call(const RunContext& context, BodyInput input) {
  input.retired.clear();
  const bool is_kept = input.run == BodyRun::kFirst || batch_.keep_pieces;
  Call call;
  if (position_.is_first) {
    py::object args = entry_of(batch_.args, context.microbatch, is_kept);
    if (args) call.args = py::reinterpret_steal<py::tuple>(args.release());
  } else {
    call.args = arguments(input);
  }
  call.kwargs = entry_of(batch_.kwargs, context.microbatch, is_kept);
  if (batch_.compute_loss) call.target = entry_of(batch_.targets, context.microbatch, is_kept);
  add_context(context, call.kwargs);
  return call;
}

void PythonBody::add_context(const RunContext& context, py::object& kwargs) const {
  if (context_keywords_.empty()) return;
  const py::dict added = context_values(context);
  py::dict all = kwargs ? py::reinterpret_steal<py::dict>(PyDict_Copy(kwargs.ptr())) : py::dict();
  for (const py::str& keyword : context_keywords_) {
    if (!all.contains(keyword)) all[keyword] = added[keyword];
  }
  kwargs = std::move(all);
}

bool PythonBody::trains() const {
  if (!py::hasattr(callable_, "parameters")) return false;
  for (const py::handle parameter : callable_.attr("parameters")()) {
    if (THPVariable_Check(parameter.ptr()) && THPVariable_Unpack(parameter.ptr()).requires_grad())
      return true;
  }
  return false;
}

std::unique_ptr<BodyHold> PythonBody::hold() { return std::make_unique<GilHold>(); }

py::object PythonBody::call_stage(const Call& given) {
  return call(callable_, given.args, given.kwargs);
}

py::object PythonBody::take_target(const RunContext& context, bool is_kept) {
  return entry_of(batch_.targets, context.microbatch, is_kept);
}

bool PythonBody::has_buffers() const {
  for (const py::object& code : {callable_, loss_fn_}) {
    if (!py::hasattr(code, "buffers")) continue;
    const py::iterator buffers = py::iter(code.attr("buffers")());
    if (buffers != py::iterator::sentinel()) return true;
  }
  return false;
}

void PythonBody::keep_output(const RunContext& context, const py::object& output) {
  if (!batch_.keep_outputs) return;
  outputs_.resize(as_index(context.num_microbatches));
  outputs_[as_index(context.microbatch)] = detach_tensors(output);
}

void PythonBody::backward_failed() noexcept {
  const py::gil_scoped_acquire gil;
  PyErr_Clear();
}

py::tuple PythonBody::arguments(const BodyInput& input) const {
  return positional(unflatten(input.tensors, input.structure.get()), spread_);
}

py::tuple PythonBody::positional(py::object value, bool spread) {
  if (spread && PyTuple_CheckExact(value.ptr()))
    return py::reinterpret_steal<py::tuple>(value.release());
  return py::make_tuple(std::move(value));
}

FlatValue PythonBody::call_loss(const py::object& output, const py::object& target) {
  enter_loss();
  py::tuple args(target ? 2 : 1);
  args[0] = output;
  if (target) args[1] = target;
  const py::object kwargs = batch_.loss_kwargs.get(/*is_kept=*/true);
  const py::object loss = call(loss_fn_, args, kwargs.is_none() ? py::object() : kwargs);
  return flatten(loss.ptr(), "what the loss function returned");
}

at::Tensor PythonBody::take_loss(const RunContext& context, BodyRun run,
                                 const FlatValue& returned) {
  LossResult result = loss_result(returned);
  if (run != BodyRun::kAgain && !result.metrics.empty()) {
    metrics_.resize(as_index(context.num_microbatches));
    metrics_[as_index(context.microbatch)] = std::move(result.metrics);
  }
  return std::move(result.loss);
}

std::vector<py::object> PythonBody::take_outputs() { return std::exchange(outputs_, {}); }

}  // namespace pipert

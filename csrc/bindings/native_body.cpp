#include "bindings/native_body.h"

#include <algorithm>
#include <utility>

#include "base/index.h"
#include "bindings/python_tree.h"
#include "random/rank_generator.h"

namespace py = pybind11;

namespace pipert {
namespace {

constexpr const char* kNotFlat =
    "an argument holds something else than tensors, numbers, strings and None in tuples, lists and "
    "dicts";

// Of a stage that gets keyword arguments alone.
const std::shared_ptr<const Structure>& no_arguments() {
  static const auto structure = std::make_shared<const Structure>(
      Structure{.kind = Structure::Kind::kTuple, .text = {}, .children = {}});
  return structure;
}

void append(NativeInput& input, std::size_t part, const std::vector<at::Tensor>& tensors,
            std::shared_ptr<const Structure> structure) {
  input.tensors.insert(input.tensors.end(), tensors.begin(), tensors.end());
  input.parts[part] = {true, std::move(structure)};
}

// False if the piece isn't flat.
bool append(NativeInput& input, std::size_t part, const std::vector<BatchPiece>& pieces,
            Microbatch microbatch) {
  if (pieces.empty()) return true;
  const auto& flat = pieces[as_index(microbatch)].flat;
  if (flat.has_value()) append(input, part, flat->tensors, flat->structure);
  return flat.has_value();
}

}  // namespace

NativeBody::NativeBody(StagePosition position, const PythonStage& stage, py::object loss_fn)
    : position_(position),
      python_(position, stage, loss_fn),
      stage_({.role = PythonFunction::Role::kStage,
              .callable = stage.callable,
              .spread = stage.spread || position.is_first}) {
  if (loss_fn.is_none()) return;
  loss_ = std::make_unique<NativeFunction>(PythonFunction{
      .role = PythonFunction::Role::kLoss, .callable = std::move(loss_fn), .spread = false});
}

void NativeBody::prepare(bool may_export) {
  trains_ = python_.trains();
  has_buffers_.reset();
  stage_.prepare(may_export);
  if (loss_ != nullptr) loss_->prepare(may_export);
}

std::string NativeBody::loss_kind() const { return loss_ == nullptr ? "module" : loss_->kind(); }

BodyResult NativeBody::forward(const RunContext& context, BodyInput input) {
  if (input.run != BodyRun::kOnly && has_buffers()) {
    stage_.refuse("it is recomputed and has buffers, which are put back by Python");
    return run_module(context, std::move(input));
  }
  auto arguments = stage_input(context, input);
  if (!arguments.has_value()) stage_.refuse(kNotFlat);
  ExportedCall* call = arguments.has_value() ? stage_.find(*arguments) : nullptr;
  if (call == nullptr) {
    arguments.reset();
    return run_module(context, std::move(input));
  }
  const BodyRun run = input.run;
  input = {};
  return run_graph(context, *call, std::move(*arguments), run);
}

BodyResult NativeBody::run_graph(const RunContext& context, ExportedCall& call,
                                 NativeInput arguments, BodyRun run) {
  const std::uint64_t before =
      run == BodyRun::kFirst ? sum_of_versions(context.microbatch) : std::uint64_t{0};
  BodyResult result;
  FlatValue output{call.graph->run(std::move(arguments.tensors)), call.output};
  if (position_.is_last) {
    finish_natively(context, std::move(output), run, result);
  } else {
    result.tensors = std::move(output.tensors);
    result.structure = std::move(output.structure);
  }
  if (run == BodyRun::kFirst) result.can_run_again = sum_of_versions(context.microbatch) == before;
  return result;
}

// Looked up where it matters alone: it takes a walk over all modules.
bool NativeBody::has_buffers() {
  if (!has_buffers_.has_value()) {
    const py::gil_scoped_acquire gil;
    has_buffers_ = python_.has_buffers();
  }
  return *has_buffers_;
}

std::uint64_t NativeBody::sum_of_versions(Microbatch microbatch) {
  const BodyBatch& batch = python_.batch();
  std::uint64_t sum = 0;
  for (const auto* pieces : {&batch.args, &batch.kwargs, &batch.targets}) {
    if (pieces->empty()) continue;
    const BatchPiece& piece = (*pieces)[as_index(microbatch)];
    if (!piece.flat.has_value()) {
      const py::gil_scoped_acquire gil;
      sum += pipert::sum_of_versions(piece.object);
      continue;
    }
    for (const at::Tensor& tensor : piece.flat->tensors)
      sum += tensor.is_inference() ? 0 : static_cast<std::uint64_t>(tensor._version());
  }
  return sum;
}

std::optional<NativeInput> NativeBody::stage_input(const RunContext& context,
                                                   const BodyInput& input) {
  const BodyBatch& batch = python_.batch();
  NativeInput arguments;
  if (!position_.is_first) {
    append(arguments, 0, input.tensors, input.structure);
  } else if (batch.args.empty()) {
    append(arguments, 0, {}, no_arguments());
  } else if (!append(arguments, 0, batch.args, context.microbatch)) {
    return std::nullopt;
  }
  if (!append(arguments, 1, batch.kwargs, context.microbatch)) return std::nullopt;
  return arguments;
}

std::optional<NativeInput> NativeBody::loss_input(const RunContext& context,
                                                  const FlatValue& output) {
  const BodyBatch& batch = python_.batch();
  NativeInput arguments;
  append(arguments, 0, output.tensors, output.structure);
  if (!append(arguments, 1, batch.targets, context.microbatch) ||
      !batch.loss_kwargs.flat.has_value())
    return std::nullopt;
  append(arguments, 2, batch.loss_kwargs.flat->tensors, batch.loss_kwargs.flat->structure);
  return arguments;
}

std::optional<FlatValue> NativeBody::native_loss(const RunContext& context,
                                                 const FlatValue& output) {
  auto arguments = loss_input(context, output);
  if (!arguments.has_value()) loss_->refuse(kNotFlat);
  ExportedCall* call = arguments.has_value() ? loss_->find(*arguments) : nullptr;
  if (call == nullptr) return std::nullopt;
  enter_loss();
  return FlatValue{call->graph->run(std::move(arguments->tensors)), call->output};
}

void NativeBody::finish_natively(const RunContext& context, FlatValue output, BodyRun run,
                                 BodyResult& result) {
  const BodyBatch& batch = python_.batch();
  if (batch.keep_outputs && run != BodyRun::kAgain) {
    outputs_.resize(as_index(context.num_microbatches));
    auto& kept = outputs_[as_index(context.microbatch)].emplace();
    kept.structure = output.structure;
    for (const at::Tensor& tensor : output.tensors) kept.tensors.push_back(tensor.detach());
  }
  if (!batch.compute_loss) return;
  if (const auto returned = native_loss(context, output)) {
    result.loss = python_.take_loss(context, run, *returned);
    return;
  }
  result.hold = PythonBody::hold();
  // Once wrapped, the tensors shall die under the hold.
  const FlatValue seen = std::move(output);
  const bool runs_again = run == BodyRun::kFirst;
  py::object target = python_.take_target(context, runs_again);
  // The second run shall not see what the first one takes from a list, say.
  if (target && runs_again) target = copy_containers(target, /*clones=*/false);
  result.loss = python_.take_loss(
      context, run, python_.call_loss(unflatten(seen.tensors, seen.structure.get()), target));
}

BodyResult NativeBody::run_module(const RunContext& context, BodyInput input) {
  const bool has_loss = position_.is_last && python_.batch().compute_loss;
  if (!has_loss || input.run != BodyRun::kOnly) {
    if (has_loss) loss_->refuse("its stage is recomputed, and runs its module");
    return python_.forward(context, std::move(input));
  }
  BodyResult result;
  result.hold = PythonBody::hold();
  const PythonBody::Call call = python_.take_call(context, std::move(input));
  const py::object output = python_.call_stage(call);
  python_.keep_output(context, output);
  if (is_plain(output.ptr())) {
    const FlatValue flat = flatten(output.ptr(), "the last stage's output");
    const py::gil_scoped_release no_gil;
    if (const auto returned = native_loss(context, flat)) {
      result.loss = python_.take_loss(context, BodyRun::kOnly, *returned);
      return result;
    }
  } else {
    loss_->refuse(
        "the last stage's output holds something else than tensors, numbers, strings and "
        "None in tuples, lists and dicts");
  }
  result.loss = python_.take_loss(context, BodyRun::kOnly, python_.call_loss(output, call.target));
  return result;
}

std::vector<py::object> NativeBody::take_outputs() {
  std::vector<py::object> values = python_.take_outputs();
  std::vector<std::optional<FlatValue>> flat = std::exchange(outputs_, {});
  values.resize(std::max(values.size(), flat.size()));
  for (std::size_t i = 0; i < flat.size(); ++i) {
    if (flat[i].has_value()) values[i] = unflatten(flat[i]->tensors, flat[i]->structure.get());
  }
  return values;
}

}  // namespace pipert

#include "stage/recorded_stage.h"

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/index.h"

namespace pipert {
namespace {

// A recording that is given up unless it is ended.
class Capture {
 public:
  explicit Capture(DeviceGraph& graph) : graph_(&graph) { graph.begin(); }
  ~Capture() {
    if (graph_ != nullptr) graph_->abandon();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  void end() { std::exchange(graph_, nullptr)->end(); }

 private:
  DeviceGraph* graph_;
};

// While it lives, a stage's actions can be begun again.
class Repeatable {
 public:
  explicit Repeatable(ModuleStage& stage) : stage_(stage) { stage.set_repeatable(true); }
  ~Repeatable() { stage_.set_repeatable(false); }
  Repeatable(const Repeatable&) = delete;
  Repeatable& operator=(const Repeatable&) = delete;

 private:
  ModuleStage& stage_;
};

// The user's own exception stays to be seen.
[[noreturn]] void throw_unrepeatable(const std::exception_ptr& failure, const std::string& reason) {
  try {
    std::rethrow_exception(failure);
  } catch (...) {
    std::throw_with_nested(std::runtime_error(
        reason +
        "; what was begun of this backward can't be run again. The next steps run as they are"));
  }
}

}  // namespace

void RecordedStage::begin(LossWeights weights, std::int64_t rows) {
  losses_.clear();
  loss_weights_.clear();
  inner_->begin(std::move(weights), rows);
}

Message RecordedStage::run(StageAction action, const RunContext& context, Message input) {
  switch (action) {
    case StageAction::kForward:
      return inner_->forward(context, std::move(input));
    case StageAction::kBackward:
      return inner_->backward(context, std::move(input));
    case StageAction::kBackwardInput:
      return inner_->backward_input(context, std::move(input));
    case StageAction::kBackwardWeight:
      inner_->backward_weight(context);
      return {};
  }
  return {};
}

Message RecordedStage::forward(const RunContext& context, Message input) {
  recorder_->enter(input);
  switch (recorder_->mode()) {
    case PassMode::kEager:
      return run(StageAction::kForward, context, std::move(input));
    case PassMode::kRecord:
      return record(StageAction::kForward, context, std::move(input));
    case PassMode::kReplay:
      return replay_forward(context, std::move(input));
  }
  return {};
}

Message RecordedStage::run_backward(StageAction action, const RunContext& context,
                                    Message gradients) {
  if (recorder_->mode() == PassMode::kEager) return run(action, context, std::move(gradients));
  if (recorder_->mode() == PassMode::kRecord) return record(action, context, std::move(gradients));
  RecordedAction* recorded = recorder_->recording()->find(name_of(action, context));
  if (replays(context)) {
    TORCH_INTERNAL_ASSERT(recorded != nullptr);
    Message result = replay_backward(*recorded, context, std::move(gradients));
    if (action != StageAction::kBackwardInput) {
      is_replayed_[as_index(context.microbatch)] = false;
      --num_replayed_;
    }
    return result;
  }
  Message result = run(action, context, std::move(gradients));
  if (recorded != nullptr) recorded->gradients.take_over(recorder_->leaves());
  return result;
}

Message RecordedStage::record(StageAction action, const RunContext& context, Message input) {
  std::optional<ModuleStage::Snapshot> before = inner_->save(context.microbatch);
  const std::vector<at::Tensor> gradients = recorder_->gradients();
  std::optional<RecordedAction> recorded;
  std::exception_ptr failure;
  try {
    const Repeatable repeatable(*inner_);
    recorded = capture(action, context, input);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure == nullptr) {
    before.reset();
    inner_->free_retired();
    recorded->gradients = {gradients, recorder_->gradients()};
    return launch(recorder_->recording()->keep(name_of(action, context), std::move(*recorded)),
                  input);
  }
  // Nothing of it has been computed: what stands there now, or is kept for later, never will be.
  recorder_->set_gradients(gradients);
  at::autocast::clear_cache();
  const bool may_repeat = before->may_repeat();
  if (!recorder_->give_up(failure, may_repeat)) std::rethrow_exception(failure);
  if (!may_repeat) throw_unrepeatable(failure, recorder_->reason());
  failure = nullptr;  // a Python traceback holds the frames, and they hold tensors
  inner_->restore(context.microbatch, *std::exchange(before, {}));
  return run(action, context, std::move(input));
}

RecordedAction RecordedStage::capture(StageAction action, const RunContext& context,
                                      const Message& input) {
  RecordedAction recorded;
  recorded.form = MessageForm(input);
  const std::string obstacle = recorded.form.obstacle(recorder_->device());
  TORCH_CHECK(obstacle.empty(), obstacle);
  recorded.graph = recorder_->make_graph();
  Capture capturing(*recorded.graph);
  Message given = input;
  given.tensors = recorded.form.make_tensors();
  recorded.inputs = aliases_of(given.tensors);
  recorded.output = run(action, context, std::move(given));
  for (const at::Tensor& tensor : recorded.output.tensors) {
    TORCH_CHECK(!tensor.defined() ||
                    (tensor.device() == recorder_->device() && tensor.layout() == at::kStrided &&
                     tensor.has_storage() && !tensor.is_conj() && !tensor.is_neg()),
                "a stage returned a tensor that can't be copied out of a recording: ",
                tensor.toString(), " on ", tensor.device());
  }
  TORCH_CHECK(action != StageAction::kForward ||
                  !inner_->trains_others(context.microbatch, recorder_->leaves()),
              "backward would give a gradient to a tensor that is no parameter of a stage's module "
              "or of the loss function's");
  capturing.end();
  if (action == StageAction::kForward && !inner_->losses().empty()) {
    recorded.loss = inner_->losses()[as_index(context.microbatch)];
    recorded.loss_weight = inner_->loss_weights()[as_index(context.microbatch)];
  }
  recorded.output.tensors = aliases_of(recorded.output.tensors);
  return recorded;
}

Message RecordedStage::launch(RecordedAction& recorded, const Message& input) {
  const c10::AutoGradMode no_grad(false);
  for (std::size_t i = 0; i < recorded.inputs.size(); ++i) {
    if (!recorded.inputs[i].defined()) continue;
    if (input.tensors[i].defined()) {
      recorded.inputs[i].copy_(input.tensors[i], /*non_blocking=*/true);
    } else {
      recorded.inputs[i].zero_();
    }
  }
  recorded.graph->launch();
  Message output = recorded.output;
  for (at::Tensor& tensor : output.tensors) {
    if (tensor.defined()) tensor = tensor.clone();
  }
  return output;
}

bool RecordedStage::replays(const RunContext& context) const {
  return as_index(context.microbatch) < is_replayed_.size() &&
         is_replayed_[as_index(context.microbatch)];
}

Message RecordedStage::replay_forward(const RunContext& context, Message input) {
  RecordedAction* recorded = recorder_->recording()->find(name_of(StageAction::kForward, context));
  if (recorder_->follows_recording() && (recorded == nullptr || !recorded->form.matches(input))) {
    recorder_->leave_replay(c10::str("microbatch ", context.microbatch, " came to stage ",
                                     context.turn.stage, " in another form than was recorded"));
  }
  if (!recorder_->follows_recording()) {
    Message output = run(StageAction::kForward, context, std::move(input));
    if (!inner_->losses().empty())
      note_loss(context, inner_->losses()[as_index(context.microbatch)],
                inner_->loss_weights()[as_index(context.microbatch)]);
    return output;
  }
  Message output = launch(*recorded, input);
  if (recorded->loss.defined()) note_loss(context, recorded->loss, recorded->loss_weight);
  if (!context.pass.training) return output;
  is_replayed_.resize(as_index(context.num_microbatches));
  is_replayed_[as_index(context.microbatch)] = true;
  ++num_replayed_;
  return output;
}

Message RecordedStage::replay_backward(RecordedAction& recorded, const RunContext& context,
                                       Message gradients) {
  TORCH_INTERNAL_ASSERT(gradients.tensors.size() == recorded.inputs.size());
  for (std::size_t i = 0; i < recorded.inputs.size(); ++i) {
    const at::Tensor& arrived = gradients.tensors[i];
    const bool fits = recorded.inputs[i].defined()
                          ? !arrived.defined() || arrived.sizes() == recorded.inputs[i].sizes()
                          : !arrived.defined();
    TORCH_CHECK_VALUE(fits, "the gradient of output ", i, " of stage ", context.turn.stage,
                      ", microbatch ", context.microbatch,
                      ", is another one than when the pass was recorded: the stages behind it "
                      "compute something else (say pipe.forget_captured() where they are changed)");
  }
  RecordedGradients::Others others(recorded.gradients, recorder_->leaves());
  Message result = launch(recorded, gradients);
  others.add();
  return result;
}

void RecordedStage::note_loss(const RunContext& context, const at::Tensor& loss, double weight) {
  losses_.resize(as_index(context.num_microbatches));
  loss_weights_.resize(as_index(context.num_microbatches));
  losses_[as_index(context.microbatch)] = loss;
  loss_weights_[as_index(context.microbatch)] = weight;
}

const std::vector<at::Tensor>& RecordedStage::losses() const {
  return losses_.empty() ? inner_->losses() : losses_;
}

const std::vector<double>& RecordedStage::loss_weights() const {
  return losses_.empty() ? inner_->loss_weights() : loss_weights_;
}

void RecordedStage::reset() noexcept {
  inner_->reset();
  is_replayed_.clear();
  num_replayed_ = 0;
}

}  // namespace pipert

// RecordedStage: a stage each action of which becomes a graph of the device, to be launched in its
// place. See Note [Graphs of single actions].
//
// Which of the two a pass does, or neither, the rank's ActionRecorder says. What can't be recorded
// runs as it is, to the same bits; so do, in a pass that is replayed, microbatches that come in
// another form than was recorded, and all forwards after that: what they compute may be of use to
// others (a cast that autocast keeps).
#pragma once

#include <memory>
#include <vector>

#include "stage/action_recorder.h"
#include "stage/module_stage.h"

namespace pipert {

class RecordedStage final : public Stage {
 public:
  RecordedStage(std::unique_ptr<ModuleStage> inner, std::shared_ptr<ActionRecorder> recorder)
      : inner_(std::move(inner)), recorder_(std::move(recorder)) {}

  void begin(LossWeights weights, std::int64_t rows) override;
  Message forward(const RunContext& context, Message input) override;
  Message backward(const RunContext& context, Message gradients) override {
    return run_backward(StageAction::kBackward, context, std::move(gradients));
  }
  Message backward_input(const RunContext& context, Message gradients) override {
    return run_backward(StageAction::kBackwardInput, context, std::move(gradients));
  }
  void backward_weight(const RunContext& context) override {
    run_backward(StageAction::kBackwardWeight, context, {});
  }
  void recompute(const RunContext& context) override { inner_->recompute(context); }
  void offload(const RunContext& context, Lane& lane) override { inner_->offload(context, lane); }
  void reload(const RunContext& context, Lane& lane, Lane& compute) override {
    inner_->reload(context, lane, compute);
  }
  void reset() noexcept override;
  const std::vector<at::Tensor>& losses() const override;
  const std::vector<double>& loss_weights() const override;
  int num_in_flight() const override { return inner_->num_in_flight() + num_replayed_; }
  int num_activations() const override { return inner_->num_activations() + num_replayed_; }

 private:
  Message run_backward(StageAction action, const RunContext& context, Message gradients);
  // The action as it is.
  Message run(StageAction action, const RunContext& context, Message input);
  // Records it and then does it; or runs it, if it can't be recorded.
  Message record(StageAction action, const RunContext& context, Message input);
  RecordedAction capture(StageAction action, const RunContext& context, const Message& input);
  // Does what was recorded, on what arrived.
  static Message launch(RecordedAction& recorded, const Message& input);
  bool replays(const RunContext& context) const;
  Message replay_forward(const RunContext& context, Message input);
  Message replay_backward(RecordedAction& recorded, const RunContext& context, Message gradients);
  void note_loss(const RunContext& context, const at::Tensor& loss, double weight);
  static ActionRecording::Name name_of(StageAction action, const RunContext& context) {
    return {action, context.turn.stage, context.microbatch};
  }

  std::unique_ptr<ModuleStage> inner_;
  std::shared_ptr<ActionRecorder> recorder_;  // shared with the other stages, and the caller
  // Of a pass that is replayed.
  std::vector<bool> is_replayed_;  // by microbatch in flight
  int num_replayed_ = 0;
  std::vector<at::Tensor> losses_;
  std::vector<double> loss_weights_;
};

}  // namespace pipert

// BlankStage: a stage that computes nothing, and watches that the Executor asks for what a Stage
// promises to do (stage/stage.h), in the order that it REQUIRES.
#pragma once

#include <memory>
#include <vector>

#include "base/structure.h"
#include "ir/action.h"
#include "stage/stage.h"

namespace pipert {

class BlankStage final : public Stage {
 public:
  // `log`: of the rank, shared by its stages; each action is written there once it is done.
  // Outlives the stage. A backward of the last stage (of its copy) has no input, a forward of the
  // first none.
  BlankStage(StageIndex stage, bool is_first, bool is_last, int num_microbatches,
             std::vector<Action>& log);

  void begin(LossWeights /*weights*/, std::int64_t /*rows*/) override { reset(); }
  // All throw ValueError for a microbatch that is out of range, that ran already or for which what
  // must come before didn't, and for an input that isn't the one that this stage needs.
  Message forward(const RunContext& context, Message input) override;
  Message backward(const RunContext& context, Message gradients) override;
  void recompute(const RunContext& context) override;
  Message backward_input(const RunContext& context, Message gradients) override;
  void backward_weight(const RunContext& context) override;
  void offload(const RunContext& context, Lane& lane) override;
  void reload(const RunContext& context, Lane& lane, Lane& compute) override;
  void reset() noexcept override;
  const std::vector<at::Tensor>& losses() const override { return losses_; }
  const std::vector<double>& loss_weights() const override { return loss_weights_; }
  int num_in_flight() const override { return num_in_flight_; }
  int num_activations() const override { return num_in_flight_ - num_on_host_; }

 private:
  enum class State : std::uint8_t { kNew, kInFlight, kInputDone, kDone };
  enum class Residence : std::uint8_t { kDevice, kHost, kDeviceAgain };  // of the activations
  State& state_of(const Action& action);
  // REQUIRES a microbatch that state_of() took. ValueError unless its activations are on the
  // device.
  void require_activations(const Action& action) const;
  void move(const Action& action, Residence from, Residence to);
  Message run_backward(const Action& action, const Message& gradients, State after);
  Message finish(const Action& action, MessageKind made);

  StageIndex stage_;
  bool is_first_;
  bool is_last_;
  std::vector<State> states_;  // by microbatch, as the next
  std::vector<Residence> residences_;
  std::vector<bool> recomputed_;
  int num_in_flight_ = 0;  // forward done, backward or weight half not
  int num_on_host_ = 0;
  std::vector<Action>& log_;
  std::shared_ptr<const Structure> nothing_;  // of its messages, which have no tensors
  std::vector<at::Tensor> losses_;            // none
  std::vector<double> loss_weights_;
};

}  // namespace pipert

#include "runtime/blank_stage.h"

#include <algorithm>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

Action half(ActionKind kind, StageIndex stage, Microbatch microbatch) {
  return {.kind = kind, .stage = stage, .microbatch = microbatch};
}

std::shared_ptr<const Structure> no_value() {
  auto structure = std::make_shared<Structure>();
  structure->kind = Structure::Kind::kNone;
  return structure;
}

void require_input(const Action& action, const Message& input, const MessageKey& wanted) {
  if (input.key == wanted && input.weight > 0.0) return;
  const std::string got = input.weight > 0.0 ? concat("the ", to_string(input.key)) : "nothing";
  throw ValueError(
      concat(to_string(action), " needs the ", to_string(wanted), " as its input, got ", got));
}

}  // namespace

BlankStage::BlankStage(StageIndex stage, bool is_first, bool is_last, int num_microbatches,
                       std::vector<Action>& log)
    : stage_(stage),
      is_first_(is_first),
      is_last_(is_last),
      states_(as_index(num_microbatches), State::kNew),
      residences_(as_index(num_microbatches), Residence::kDevice),
      recomputed_(as_index(num_microbatches), false),
      log_(log),
      nothing_(no_value()) {}

Message BlankStage::forward(const RunContext& context, Message input) {
  const Action action = pipert::forward(stage_, context.microbatch);
  State& state = state_of(action);
  if (state != State::kNew) throw ValueError(concat(to_string(action), " ran already"));
  if (!is_first_) {
    require_input(action, input, {MessageKind::kActivation, stage_ - 1, context.microbatch});
  }
  state = State::kInFlight;
  ++num_in_flight_;
  return finish(action, MessageKind::kActivation);
}

Message BlankStage::backward(const RunContext& context, Message gradients) {
  return run_backward(pipert::backward(stage_, context.microbatch), gradients, State::kDone);
}

void BlankStage::recompute(const RunContext& context) {
  const Action action = half(ActionKind::kRecompute, stage_, context.microbatch);
  const State state = state_of(action);
  if (state == State::kNew) throw ValueError(concat(to_string(action), " runs before its forward"));
  if (state != State::kInFlight)
    throw ValueError(concat(to_string(action), " runs after the backward that it is for"));
  require_activations(action);
  if (recomputed_[as_index(context.microbatch)])
    throw ValueError(concat(to_string(action), " ran already"));
  recomputed_[as_index(context.microbatch)] = true;
  log_.push_back(action);
}

Message BlankStage::backward_input(const RunContext& context, Message gradients) {
  return run_backward(half(ActionKind::kInputGrad, stage_, context.microbatch), gradients,
                      State::kInputDone);
}

Message BlankStage::run_backward(const Action& action, const Message& gradients, State after) {
  State& state = state_of(action);
  if (state == State::kNew) throw ValueError(concat(to_string(action), " runs before its forward"));
  if (state != State::kInFlight) throw ValueError(concat(to_string(action), " ran already"));
  require_activations(action);
  if (!is_last_) {
    require_input(action, gradients, {MessageKind::kGradient, stage_ + 1, action.microbatch});
  }
  state = after;
  if (after == State::kDone) --num_in_flight_;
  return finish(action, MessageKind::kGradient);
}

void BlankStage::backward_weight(const RunContext& context) {
  const Action action = half(ActionKind::kWeightGrad, stage_, context.microbatch);
  State& state = state_of(action);
  if (state == State::kDone) throw ValueError(concat(to_string(action), " ran already"));
  if (state != State::kInputDone) {
    throw ValueError(concat(to_string(action), " runs before its input half"));
  }
  state = State::kDone;
  --num_in_flight_;
  log_.push_back(action);
}

void BlankStage::offload(const RunContext& context, Lane& /*lane*/) {
  const Action action = half(ActionKind::kOffload, stage_, context.microbatch);
  const State state = state_of(action);
  if (state == State::kNew) throw ValueError(concat(to_string(action), " runs before its forward"));
  if (state != State::kInFlight)
    throw ValueError(concat(to_string(action), " runs after its backward"));
  if (recomputed_[as_index(context.microbatch)])
    throw ValueError(concat(to_string(action), " runs after what it moves was computed again"));
  move(action, Residence::kDevice, Residence::kHost);
}

void BlankStage::reload(const RunContext& context, Lane& /*lane*/, Lane& /*compute*/) {
  const Action action = half(ActionKind::kReload, stage_, context.microbatch);
  state_of(action);
  move(action, Residence::kHost, Residence::kDeviceAgain);
}

void BlankStage::move(const Action& action, Residence from, Residence to) {
  Residence& residence = residences_[as_index(action.microbatch)];
  if (residence != from) {
    const bool too_early = residence == Residence::kDevice;
    throw ValueError(
        concat(to_string(action), too_early ? " runs before its OFFLOAD" : " ran already"));
  }
  residence = to;
  num_on_host_ += to == Residence::kHost ? 1 : -1;
  log_.push_back(action);
}

void BlankStage::require_activations(const Action& action) const {
  if (residences_[as_index(action.microbatch)] != Residence::kHost) return;
  throw ValueError(concat(to_string(action), " needs what is on the host"));
}

void BlankStage::reset() noexcept {
  std::fill(states_.begin(), states_.end(), State::kNew);
  std::fill(residences_.begin(), residences_.end(), Residence::kDevice);
  std::fill(recomputed_.begin(), recomputed_.end(), false);
  num_in_flight_ = 0;
  num_on_host_ = 0;
}

BlankStage::State& BlankStage::state_of(const Action& action) {
  if (action.microbatch < 0 || as_index(action.microbatch) >= states_.size()) {
    throw ValueError(concat(to_string(action), ": microbatch must be in [0, ", states_.size(),
                            "), got ", action.microbatch));
  }
  return states_[as_index(action.microbatch)];
}

Message BlankStage::finish(const Action& action, MessageKind made) {
  log_.push_back(action);
  Message result;
  result.key = {made, action.stage, action.microbatch};  // also where it stays on the rank
  result.weight = 1.0;                                   // tells it from no message at all
  result.structure = nothing_;
  return result;
}

}  // namespace pipert

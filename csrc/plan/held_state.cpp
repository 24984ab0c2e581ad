#include "plan/held_state.h"

#include "base/error.h"

namespace pipert {

HeldState::State& HeldState::state(const Action& action) {
  std::size_t& row = rows_[as_index(action.stage)];
  if (row == kNoRow) {
    row = states_.size();
    states_.resize(row + as_index(program_.num_microbatches));
  }
  return states_[row + as_index(action.microbatch)];
}

HeldState::Phase HeldState::needed(ActionKind kind) {
  if (kind == ActionKind::kForward) return Phase::kNone;
  if (kind == ActionKind::kReload) return Phase::kOnHost;
  return kind == ActionKind::kWeightGrad ? Phase::kHalf : Phase::kHere;
}

HeldState::Phase HeldState::left(ActionKind kind) {
  if (kind == ActionKind::kOffload) return Phase::kOnHost;
  if (kind == ActionKind::kInputGrad) return Phase::kHalf;
  const bool ends = kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad;
  return ends ? Phase::kGone : Phase::kHere;
}

std::string_view HeldState::words(Phase phase) {
  switch (phase) {
    case Phase::kNone:
      return "not made";
    case Phase::kHere:
      return "here";
    case Phase::kOnHost:
      return "on the host";
    case Phase::kHalf:
      return "kept for W";
    case Phase::kGone:
      return "gone";
  }
  return "?";
}

MaybeFinding HeldState::take(std::size_t instruction) {
  const auto& op = program_.instructions[instruction].op;
  const auto* run = std::get_if<Run>(&op);
  const auto* move = std::get_if<Move>(&op);
  if (run == nullptr && move == nullptr) return std::nullopt;
  const Action& action = run != nullptr ? run->action : move->action;
  State& state = this->state(action);
  if (state.phase != needed(action.kind)) {
    std::vector<std::size_t> places = {instruction};
    if (state.phase != Phase::kNone) places.insert(places.begin(), state.last);
    return find(Flaw::kState, program_, places,
                concat(name_of(program_, instruction), " needs activations that are ",
                       words(needed(action.kind)), ", but they are ", words(state.phase)));
  }
  if (state.phase != Phase::kNone && !clocks_.is_done(state.last)) {
    return find(
        Flaw::kRace, program_, {state.last, instruction},
        concat(name_of(program_, instruction), " may use the activations before the end of ",
               name_of(program_, state.last)));
  }
  state = {left(action.kind), instruction};
  return std::nullopt;
}

}  // namespace pipert

// HeldState: the activations that a rank's stages hold along its Program, and whether what is done
// to them is in order. Takes the instructions one at a time, in the Program's order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "plan/finding.h"
#include "plan/lane_clocks.h"
#include "plan/program.h"

namespace pipert {

class HeldState {
 public:
  // Both outlive this. `clocks` is at the instruction that is taken.
  HeldState(const Program& program, const LaneClocks& clocks)
      : program_(program), clocks_(clocks), rows_(as_index(program.num_stages), kNoRow) {}

  // An action whose activations aren't there (no F yet, on the host, or used up), or that may begin
  // before the one before it on the same activations has ended: whichever of them writes, F, the
  // moves, R, B, I and W of a microbatch on a stage come one after the other.
  MaybeFinding take(std::size_t instruction);

 private:
  enum class Phase : std::uint8_t { kNone, kHere, kOnHost, kHalf, kGone };
  struct State {
    Phase phase = Phase::kNone;
    std::size_t last = 0;  // the instruction before
  };
  static constexpr std::size_t kNoRow = static_cast<std::size_t>(-1);

  State& state(const Action& action);
  static Phase needed(ActionKind kind);
  static Phase left(ActionKind kind);
  static std::string_view words(Phase phase);

  const Program& program_;
  const LaneClocks& clocks_;
  std::vector<std::size_t> rows_;  // by stage: where its microbatches begin in states_
  std::vector<State> states_;
};

}  // namespace pipert

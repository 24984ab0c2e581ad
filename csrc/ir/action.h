// Action: one unit of a Schedule, kind x stage x microbatch. A plain value; any thread may hold
// one.
//
// The text form is PyTorch's action grammar (docs/schedules.md): "2F0", "1I3", "3UNSHARD",
// "1SEND_F2", "(0F7;7B3)OVERLAP_F_B".
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/ids.h"

namespace pipert {

enum class ActionKind : std::uint8_t {
  kForward,       // F
  kBackward,      // B: input and weight gradients
  kInputGrad,     // I: the input half of B
  kWeightGrad,    // W: the weight half of B
  kSendForward,   // SEND_F: the activation of (stage, microbatch) leaves the rank
  kRecvForward,   // RECV_F: `stage` is the receiver's
  kSendBackward,  // SEND_B: the input gradient of (stage, microbatch) leaves the rank
  kRecvBackward,  // RECV_B: `stage` is the receiver's
  kUnshard,       // gather a sharded stage's parameters; no microbatch
  kReshard,       // free them again; no microbatch
  kReduceGrad,    // reduce a stage's gradients over its replicas; no microbatch
  kOverlap,       // a forward and a backward that one stage pair runs together
};

inline constexpr std::size_t kNumActionKinds = 12;

inline constexpr Microbatch kNoMicrobatch = -1;
// The largest stage or microbatch index that a text may hold: far from overflow, even one more and
// multiplied.
inline constexpr std::int32_t kMaxIndex = 999'999'999;

struct Action {
  ActionKind kind = ActionKind::kForward;
  StageIndex stage = 0;
  Microbatch microbatch = kNoMicrobatch;
  // kOverlap alone: (stage, microbatch) is the forward, this pair the backward, full (B) or input
  // half (I).
  ActionKind paired_kind = ActionKind::kBackward;
  StageIndex paired_stage = 0;
  Microbatch paired_microbatch = kNoMicrobatch;

  friend auto operator<=>(const Action&, const Action&) = default;
};

constexpr Action forward(StageIndex stage, Microbatch microbatch) {
  return {.kind = ActionKind::kForward, .stage = stage, .microbatch = microbatch};
}
constexpr Action backward(StageIndex stage, Microbatch microbatch) {
  return {.kind = ActionKind::kBackward, .stage = stage, .microbatch = microbatch};
}

// "F", "SEND_F", "OVERLAP_F_B": the kind's word in the text form.
std::string_view kind_name(ActionKind kind);

// The reverse. Throws ValueError for an unknown word, with the known ones.
ActionKind parse_kind(std::string_view name);

// F, B, I, W and OVERLAP_F_B run on the compute lane; the others move or gather data.
bool is_compute(ActionKind kind);

// Whether an action of this kind is for one microbatch (UNSHARD, RESHARD and REDUCE_GRAD are for a
// whole stage).
bool has_microbatch(ActionKind kind);

// The text form of one action.
std::string to_string(const Action& action);

// Parses a whole text ("2F0"); nothing before or after it is tolerated. Throws ValueError that says
// what was expected and what came.
Action parse_action(std::string_view text);

}  // namespace pipert

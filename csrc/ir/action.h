// Action: one unit of a Schedule, kind x stage x microbatch. A plain value; any thread may hold
// one.
//
// The text form is PyTorch's action grammar and a superset of it (docs/schedules.md): "2F0", "1I3",
// "3UNSHARD", "1SEND_F2", "(0F7;7B3)OVERLAP_F_B"; "2R0", "2OFFLOAD0", "2F0s1v3", "2UPDATEv4".
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
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
  kRecompute,     // R: the forward again, right before the backward, for activations not kept
  kOffload,       // OFFLOAD: the activations of (stage, microbatch) move to the host
  kReload,        // RELOAD: and back
  kUpdate,        // UPDATE: the optimizer makes a version of the stage's weights; no microbatch
};

inline constexpr std::size_t kNumActionKinds = 16;

inline constexpr Microbatch kNoMicrobatch = -1;
// The whole sequence of a microbatch.
inline constexpr Slice kWholeSequence = -1;
inline constexpr std::int32_t kMaxSlice = 9'999;
// The largest stage or microbatch index that a text may hold: far from overflow, even one more and
// multiplied.
inline constexpr std::int32_t kMaxIndex = 999'999'999;

// The members stand as they do so that an action takes 32 bytes: schedules of millions are common.
struct Action {
  ActionKind kind = ActionKind::kForward;
  // kOverlap alone: the rest of the action is the forward, what is called paired_ the backward,
  // full (B) or input half (I).
  ActionKind paired_kind = ActionKind::kBackward;
  Slice slice = kWholeSequence;  // of the microbatch's sequence; see Note [Sequence slices]
  StageIndex stage = 0;
  Microbatch microbatch = kNoMicrobatch;
  WeightVersion version = 0;  // that a compute action uses, or that UPDATE makes
  Slice paired_slice = kWholeSequence;
  StageIndex paired_stage = 0;
  Microbatch paired_microbatch = kNoMicrobatch;
  WeightVersion paired_version = 0;

  friend auto operator<=>(const Action&, const Action&) = default;
};
static_assert(sizeof(Action) == 32);

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

// F, B, I, W, R and OVERLAP_F_B compute with one microbatch; the others move or gather data, or
// change a stage.
bool is_compute(ActionKind kind);

// What kind of message an action of this kind makes of its result: F an activation, B or I a
// gradient. nullopt for those that hand nothing to other stages, and for what only moves or pairs
// others: SEND, RECV and OVERLAP_F_B.
std::optional<MessageKind> result_kind(ActionKind kind);

// Whether an action of this kind is for one microbatch (UNSHARD, RESHARD, REDUCE_GRAD and UPDATE
// are for a whole stage).
bool has_microbatch(ActionKind kind);

// Whether an action of this kind has a weight version: it computes, or it is UPDATE.
bool has_version(ActionKind kind);

// The same action as another kind, of the same stage, microbatch and slice; a version is kept if
// the kind has one. REQUIRES an action that is no pair.
Action as_kind(const Action& action, ActionKind kind);

// An OVERLAP_F_B of the two.
Action overlap(const Action& forward, const Action& backward);
// Its two halves. REQUIRES pair.kind == kOverlap.
Action overlapped_forward(const Action& pair);
Action overlapped_backward(const Action& pair);

// The text form of one action.
std::string to_string(const Action& action);

// Parses a whole text ("2F0"); nothing before or after it is tolerated. Throws ValueError that says
// what was expected and what came.
Action parse_action(std::string_view text);

}  // namespace pipert

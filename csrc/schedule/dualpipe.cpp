// DualPipe (DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1, figure 5): microbatches come in from
// both ends over two copies of the model, and in the steady phase a forward of one direction and a
// backward of the other run as an overlapped pair, so that the one computes while the other
// communicates.
//
// p = 4 ranks, m = 8 microbatches, F, I and W of the same length, B two columns wide, each pair
// drawn as its F, then its B; rank r owns stage r of the first copy and stage 3-r of the second,
// which is stage 7-r here, in small letters:
//
//   rank 0: F0 F1 F2 f4 i4 w4 f5 F3 b5 -  f6 B0 -  b6 -  f7 .  B1 -  b7 -  I2 W2 I3 W3
//   rank 1: .  F0 f4 F1 f5 F2 b4 -  f6 B0 -  F3 b5 -  f7 B1 -  b6 -  B2 -  i7 I3 w7 W3
//   rank 2: .  f4 F0 f5 F1 f6 B0 -  F2 b4 -  f7 B1 -  F3 b5 -  B2 -  b6 -  I3 i7 W3 w7
//   rank 3: f4 f5 f6 F0 I0 W0 F1 f7 B1 -  F2 b4 -  B2 -  F3 .  b5 -  B3 -  i6 w6 i7 w7
//
// Each rank goes through the steps of a rank of the V-shaped half (see dualpipe_steps.h): the ranks
// of the first half with what comes in at rank 0 as chunk 0 and what comes back as chunk 1, those
// of the second half the other way round. The second direction is so the first one in a mirror.
//
// Bubble, with F, B, I, W the times of one stage, F&B that of a pair whose results are both there
// at its end: (p/2-1)(F&B+B-3W). Peak activations: p+1 of one stage each on every rank. Two copies
// of the weights, whose gradients are summed.

#include <algorithm>

#include "base/error.h"
#include "base/index.h"
#include "schedule/bidirectional_frame.h"
#include "schedule/dualpipe_steps.h"

namespace pipert {
namespace {

// From the V of p/2 ranks: its chunk 0 is one copy of the model, its chunk 1 the other.
class Mirror {
 public:
  Mirror(Rank rank, int num_ranks, int num_microbatches)
      : num_ranks_(num_ranks),
        num_microbatches_(num_microbatches),
        is_second_half_(rank >= num_ranks / 2) {}

  Action operator()(const Action& action) const {
    Action mirrored = action;
    move(mirrored.stage, mirrored.microbatch);
    if (action.kind == ActionKind::kOverlap) {
      move(mirrored.paired_stage, mirrored.paired_microbatch);
    }
    return mirrored;
  }

 private:
  void move(StageIndex& stage, Microbatch& microbatch) const {
    const bool is_way_up = stage >= num_ranks_ / 2;  // chunk 1 of the V
    const int copy = is_way_up != is_second_half_ ? 1 : 0;
    stage += copy * num_ranks_;
    microbatch += copy * num_microbatches_ / 2;
  }

  int num_ranks_;
  int num_microbatches_;
  bool is_second_half_;
};

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = bidirectional_frame("dualpipe", request);
  const int p = request.num_ranks;
  const int m = request.num_microbatches;
  if (m < 2 * p) {
    throw ValueError(
        concat("num_microbatches must be at least ", 2 * p, " (2 x num_ranks), got ", m));
  }
  for (Rank rank = 0; rank < p; ++rank) {
    auto& actions = schedule.ranks[as_index(rank)];
    actions = dualpipe_steps(std::min(rank, p - 1 - rank), p / 2, m / 2);
    std::transform(actions.begin(), actions.end(), actions.begin(), Mirror(rank, p, m));
  }
  return schedule;
}

}  // namespace

extern const Generator kDualPipe;
const Generator kDualPipe{
    .name = "dualpipe",
    .summary = "DualPipeV's overlapped pairs in both directions, over two copies of the model",
    .options = {},
    .build = build,
    .num_copies = 2};

}  // namespace pipert

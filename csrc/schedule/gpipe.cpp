// GPipe (Huang et al. 2019, arXiv:1811.06965, section 2.3, figure 2c): all forwards, then all
// backwards.
//
// p = 3 ranks, m = 3 microbatches, B as long as F:
//
//   rank 0: F0 F1 F2 .  .  .  .  B0 B1 B2
//   rank 1: .  F0 F1 F2 .  .  B0 B1 B2 .
//   rank 2: .  .  F0 F1 F2 B0 B1 B2 .  .
//
// Bubble: (p-1)(F+B) beyond m(F+B). Peak activations: m on every rank.
//
// The backwards run in the order of the forwards, as PyTorch's do; the paper's figure reverses
// them. The bubble and the peak are the same, and gradients accumulate in the order of a plain
// loop.

#include "base/index.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = single_stage_frame("gpipe", request);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    auto& actions = schedule.ranks[as_index(rank)];
    actions.reserve(2 * as_index(request.num_microbatches));
    for (Microbatch m = 0; m < request.num_microbatches; ++m) actions.push_back(forward(rank, m));
    for (Microbatch m = 0; m < request.num_microbatches; ++m) actions.push_back(backward(rank, m));
  }
  return schedule;
}

}  // namespace

extern const Generator kGpipe;
const Generator kGpipe{.name = "gpipe",
                       .summary = "all forwards, then all backwards; keeps every activation",
                       .options = {},
                       .build = build};

}  // namespace pipert

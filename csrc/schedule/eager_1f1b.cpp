// Eager 1F1B (Zhuang et al. 2022, arXiv:2211.05322): 1F1B with twice the warmup, so that each
// message has the time of a forward and a backward to arrive before it is read.
//
// p = 3 ranks, m = 5 microbatches, B as long as F:
//
//   rank 0: F0 F1 F2 F3 F4 B0 .  B1 .  B2 .  B3 .  B4
//   rank 1: .  F0 F1 F2 B0 F3 B1 F4 B2 .  B3 .  B4 .
//   rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 .  .
//
// Warmup of rank r: min(m, 2(p-1-r)) forwards. Bubble: (p-1)(F+B) beyond m(F+B), as 1F1B, and with
// an asynchronous transfer latency c of at most (F+B)/2 only 2(p-1)c more. Peak activations of rank
// r: min(m, 2(p-r)-1).

#include <algorithm>

#include "base/index.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = single_stage_frame("eager_1f1b", request);
  const int num_microbatches = request.num_microbatches;
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    const int warmup = std::min(num_microbatches, 2 * (request.num_ranks - 1 - rank));
    schedule.ranks[as_index(rank)] = alternate(rank, num_microbatches, warmup);
  }
  return schedule;
}

}  // namespace

extern const Generator kEager1F1B;
const Generator kEager1F1B{
    .name = "eager_1f1b",
    .summary = "1F1B that runs ahead, so that slow transfers cost less; twice the activations",
    .options = {},
    .build = build};

}  // namespace pipert

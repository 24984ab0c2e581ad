// 1F1B (PipeDream-flush: Narayanan et al. 2021, arXiv:2006.09503, section 3.2; DAPPLE: Fan et al.
// 2021, arXiv:2007.01045, section 3): as few forwards as reach the last rank, then one forward and
// one backward in turn.
//
// p = 3 ranks, m = 4 microbatches, B as long as F:
//
//   rank 0: F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
//   rank 1: .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
//   rank 2: .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
//
// Warmup of rank r: min(m, p-1-r) forwards. Bubble: (p-1)(F+B) beyond m(F+B), and with an
// asynchronous transfer latency c, for p | m, another [2(p-1)(m/p+1)-2]c. Peak activations of rank
// r: min(m, p-r).

#include <algorithm>

#include "base/index.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = single_stage_frame("1f1b", request);
  const int num_microbatches = request.num_microbatches;
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    const int warmup = std::min(num_microbatches, request.num_ranks - 1 - rank);
    schedule.ranks[as_index(rank)] = alternate(rank, num_microbatches, warmup);
  }
  return schedule;
}

}  // namespace

extern const Generator kOneFOneB;
const Generator kOneFOneB{
    .name = "1f1b",
    .summary = "one forward and one backward in turn; keeps num_ranks activations",
    .options = {},
    .build = build};

}  // namespace pipert

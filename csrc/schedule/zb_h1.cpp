// ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1, figure 3): 1F1B with the backward split;
// the weight halves of rank r wait r turns, so that they fill the tail of the pipeline.
//
// p = 3 ranks, m = 4 microbatches, F, I and W of the same length:
//
//   rank 0: F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3
//   rank 1: .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
//
// Warmup of rank r: min(m, p-1-r) forwards. Bubble, for m >= p and W <= F: (p-1)(F+I-W) beyond
// m(F+I+W), and (p-1)(F+I-W+4c) with an asynchronous transfer latency c on the paper's profiles.
// Peak activations, each alive until its W: min(m, p) on every rank, as 1F1B on rank 0; until its
// I: min(m, p-r) on rank r.

#include "base/index.h"
#include "schedule/delayed_weights.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = single_stage_frame("zb_h1", request);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] =
        delay_weights(rank, request.num_microbatches, request.num_ranks - 1 - rank, rank);
  }
  return schedule;
}

}  // namespace

extern const Generator kZbH1;
const Generator kZbH1{
    .name = "zb_h1",
    .summary = "1F1B with split backwards: a third of its bubble for as many activations",
    .options = {},
    .build = build};

}  // namespace pipert

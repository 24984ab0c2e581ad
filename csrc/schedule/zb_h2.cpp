// ZB-H2 (Qi et al. 2023, arXiv:2401.10241, section 2.2, figure 3): ZB-H1 with twice the warmup and
// twice the delay of the weight halves, which closes the bubble when F, I and W take equally long.
// The ranks end one after the other: an optimizer that waits for all of them brings a bubble back.
//
// p = 3 ranks, m = 5 microbatches, F, I and W of the same length:
//
//   rank 0: F0 F1 F2 F3 F4 I0 W0 I1 W1 I2 W2 I3 W3 I4 W4 .  .
//   rank 1: .  F0 F1 F2 I0 F3 I1 F4 I2 W0 I3 W1 I4 W2 W3 W4 .
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 W0 W1 W2 W3 W4
//
// Warmup of rank r: 2(p-1-r) forwards; its weight halves wait 2r turns. Bubble, on the rank that is
// at it for longest: (p-1) max(F+I-2W, I-F, 0) beyond m(F+I+W), so 0 if F = I = W. Peak
// activations, each alive until its W: 2p-1 on every rank.

#include "base/error.h"
#include "base/index.h"
#include "schedule/delayed_weights.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = single_stage_frame("zb_h2", request);
  const int num_ranks = request.num_ranks;
  if (request.num_microbatches < 2 * num_ranks - 1) {
    throw ValueError(concat("num_microbatches must be at least ", 2 * num_ranks - 1,
                            " (2 x num_ranks - 1), got ", request.num_microbatches));
  }
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] =
        delay_weights(rank, request.num_microbatches, 2 * (num_ranks - 1 - rank), 2 * rank);
  }
  return schedule;
}

}  // namespace

extern const Generator kZbH2;
const Generator kZbH2{
    .name = "zb_h2",
    .summary = "no bubble on a rank when F, I and W take equally long; twice the activations",
    .options = {},
    .build = build};

}  // namespace pipert

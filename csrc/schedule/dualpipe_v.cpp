// DualPipeV, the V-shaped half of DualPipe (DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1; cut
// in half by Qi et al. 2025, "DualPipe could be better without the Dual"): two stages a rank in a V
// and one copy of the weights. In the steady phase a forward of one chunk and a backward of the
// other run as an overlapped pair, so that the one computes while the other communicates.
//
// p = 2 ranks, m = 4 microbatches, F, I and W of the same length, B two columns wide, each pair
// drawn as its F, then its B; rank r owns the stages r and 3-r:
//
//   rank 0: F0 F1 F2 f0 i0 w0 f1 F3 b1 -  f2 B0 -  b2 -  f3 .  B1 -  b3 -  I2 W2 I3 W3
//   rank 1: .  F0 f0 F1 f1 F2 b0 -  f2 B0 -  F3 b1 -  f3 B1 -  b2 -  B2 -  i3 I3 w3 W3
//
// Bubble, with F, B, I, W the times of one stage, F&B that of a pair whose results are both there
// at its end, and W <= F = I: (p-1)(F&B+B-3W) beyond the busy time if F&B = F+B. If F&B is less,
// (p-2)(F+B-F&B) less for F = I = W, since the ranks overlap different parts of their work. With
// each pair taken apart, so that its F can leave at once: (p-1)(F+B-2W). Peak activations, each
// alive until its B or W: 2p+1 of one stage each on every rank.

#include "base/error.h"
#include "base/index.h"
#include "schedule/dualpipe_steps.h"
#include "schedule/v_frame.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = v_frame("dualpipe_v", request);
  const int num_ranks = request.num_ranks;
  if (request.num_microbatches < 2 * num_ranks) {
    throw ValueError(concat("num_microbatches must be at least ", 2 * num_ranks,
                            " (2 x num_ranks), got ", request.num_microbatches));
  }
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] = dualpipe_steps(rank, num_ranks, request.num_microbatches);
  }
  return schedule;
}

}  // namespace

extern const Generator kDualPipeV;
const Generator kDualPipeV{
    .name = "dualpipe_v",
    .summary = "overlapped forwards and backwards on a V; hides the transfers inside a stage",
    .options = {},
    .build = build};

}  // namespace pipert

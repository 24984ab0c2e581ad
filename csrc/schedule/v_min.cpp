// V-Min (Qi et al. 2024, arXiv:2405.15362, figure 4): two stages a rank in a V, with the fewest
// activations that a V can do with: a third of 1F1B's, for two thirds of its bubble.
//
// p = 3 ranks, m = 3 microbatches, F, I and W of the same length t; rank r owns the stages r and
// 5-r:
//
//   rank 0: F0 F1 .  .  .  f0 i0 w0 f1 F2 i1 I0 W0 w1 .  f2 i2 I1 W1 w2 .  I2 W2
//   rank 1: .  F0 F1 .  f0 .  f1 i0 w0 .  I0 F2 i1 W0 f2 w1 I1 i2 W1 w2 I2 W2 .
//   rank 2: .  .  F0 f0 F1 f1 .  .  i0 I0 w0 W0 F2 f2 i1 I1 w1 W1 i2 I2 w2 W2 .
//
// Bubble, for F = I = W = t and m >= p > 1: (4p-5)t beyond 6mt, (4p-7)t if 3 divides p. Peak
// activations, each alive until its W: (p+4)/3, rounded down, with the two stages of a rank as the
// unit; twice that of one stage each. Made for F = I = W: with other times the ranks wait for each
// other in every period.

#include "schedule/v_pattern.h"

namespace pipert {
namespace {

// The paper's pattern: every way takes one unit a rank.
VStarts starts(Rank r, int p) {
  const int delay = p % 3 == 0 ? 2 : 0;  // keeps the four apart, modulo 6
  return {.forward_0 = r,
          .forward_1 = 2 * p - 1 - r,
          .input_1 = 2 * p + delay + r,
          .input_0 = 4 * p + delay - 1 - r};
}

Schedule build(const ScheduleRequest& request) {
  return repeat_pattern("v_min", request, starts, 2 * ((request.num_ranks + 4) / 3));
}

}  // namespace

extern const Generator kVMin;
const Generator kVMin{.name = "v_min",
                      .summary = "a third of the activations of 1F1B, for F, I, W of one length",
                      .options = {},
                      .build = build};

}  // namespace pipert

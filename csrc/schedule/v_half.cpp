// V-Half (Qi et al. 2024, arXiv:2405.15362, figure 4): two stages a rank in a V, with half the
// activations of 1F1B and half its bubble.
//
// p = 4 ranks, m = 4 microbatches, F, I and W of the same length t; rank r owns the stages r and
// 7-r:
//
//   rank 0: F0 F1 F2 .  .  .  .  f0 i0 f1 w0 F3 i1 f2 i2 w1 I0 W0 w2 f3 i3 I1 W1 I2 w3 W2 .  I3 W3
//   rank 1: .  F0 F1 F2 .  .  f0 .  f1 i0 w0 f2 F3 i1 w1 I0 i2 W0 f3 w2 I1 i3 I2 W1 w3 W2 I3 W3 .
//   rank 2: .  .  F0 F1 F2 f0 .  f1 .  f2 i0 w0 .  F3 I0 i1 W0 f3 i2 I1 w1 I2 i3 W1 w2 I3 W2 w3 W3
//   rank 3: .  .  .  F0 f0 F1 f1 F2 f2 .  .  i0 w0 I0 W0 F3 f3 i1 I1 i2 I2 w1 W1 i3 I3 w2 W2 w3 W3
//
// Bubble, for F = I = W = t and m >= p: (3p-7)t beyond 6mt if p is even and at least 4, (3p-4)t if
// p is odd and at least 3, t for p = 2. Peak activations, each alive until its W: (p+2)/2, rounded
// down, with the two stages of a rank as the unit; twice that of one stage each. Made for
// F = I = W: other times cost more.

#include "schedule/v_pattern.h"

namespace pipert {
namespace {

// The paper's pattern: the way down takes two units a rank for F0 and I1, the way up one.
VStarts starts(Rank r, int p) {
  const int delay = p % 2 == 0 ? 3 : 0;  // keeps the four apart, modulo 6
  return {.forward_0 = 2 * r,
          .forward_1 = 3 * p - 2 - r,
          .input_1 = 3 * p + delay - 1 + 2 * r,
          .input_0 = 6 * p + delay - 2 - r};
}

Schedule build(const ScheduleRequest& request) {
  return repeat_pattern("v_half", request, starts, 2 * ((request.num_ranks + 2) / 2));
}

}  // namespace

extern const Generator kVHalf;
const Generator kVHalf{.name = "v_half",
                       .summary = "half the activations of 1F1B and half its bubble, in a V",
                       .options = {},
                       .build = build};

}  // namespace pipert

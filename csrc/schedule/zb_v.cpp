// ZB-V (Qi et al. 2023, arXiv:2401.10241, section 6): two stages a rank in a V, backwards split; no
// bubble when F, I and W take equally long, with the activations of 1F1B.
//
// p = 2 ranks, m = 4 microbatches, F, I and W of the same length; rank r owns the stages r and 3-r:
//
//   rank 0: F0 F1 F2 f0 i0 w0 f1 i1 w1 F3 I0 W0 f2 i2 w2 I1 W1 f3 i3 w3 I2 W2 I3 W3 .
//   rank 1: .  F0 f0 F1 f1 i0 w0 F2 I0 W0 f2 i1 w1 F3 I1 W1 f3 i2 w2 I2 i3 I3 W2 w3 W3
//
// Bubble, for m >= 2p-1: 0 on every rank if F = I = W; the ranks end one after the other. Peak
// activations, each alive until its W: 2p of one stage each on every rank, that is p with the two
// stages of a rank as the unit. With fewer than 2p-1 microbatches it is the order for 2p-1 without
// those that are not there.

#include <algorithm>

#include "base/index.h"
#include "schedule/v_frame.h"
#include "schedule/v_rank.h"

namespace pipert {
namespace {

using enum VAction;

std::vector<Action> rank_actions(Rank r, int p, int num_microbatches) {
  const int m = std::max(num_microbatches, 2 * p - 1);
  VRank rank(r, p, num_microbatches);
  rank.repeat(2 * (p - r) - 1, {kF0});
  rank.repeat(r, {kF1, kF0});
  rank.repeat(p - r, {kF1, kI1, kW1});
  rank.repeat(m - (2 * p - 1 - r), {kF0, kI0, kW0, kF1, kI1, kW1});
  rank.repeat(p - 1 - r, {kI0, kW0, kF1, kI1, kW1});
  rank.repeat(r, {kI0, kI1});
  rank.repeat(p - r, {kI0, kW0});
  rank.repeat(r, {kW1});
  rank.repeat(r, {kW0});
  return std::move(rank).take();
}

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = v_frame("zb_v", request);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] =
        rank_actions(rank, request.num_ranks, request.num_microbatches);
  }
  return schedule;
}

}  // namespace

extern const Generator kZbV;
const Generator kZbV{
    .name = "zb_v",
    .summary = "two stages a rank in a V: no bubble when F, I and W take equally long",
    .options = {},
    .build = build};

}  // namespace pipert

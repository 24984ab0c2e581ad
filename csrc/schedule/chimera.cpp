// Chimera (Li and Hoefler, SC 2021, arXiv:2107.06925, section 3): two pipelines in opposite
// directions over two copies of the model, each with half of the microbatches, merged so that the
// one computes where the other waits.
//
// p = 4 ranks, m = 4 microbatches, B as long as F; rank r owns stage r of the first copy and stage
// 3-r of the second, which is stage 7-r here:
//
//   rank 0: 0F0 0F1 .   7F2 7B2 7F3 7B3 0B0 .   0B1
//   rank 1: .   1F0 6F2 1F1 6F3 6B2 1B0 6B3 1B1 .
//   rank 2: .   5F2 2F0 5F3 2F1 2B0 5B2 2B1 5B3 .
//   rank 3: 4F2 4F3 .   3F0 3B0 3F1 3B1 4B2 .   4B3
//
// In slots of one F or B, microbatch k of a pipeline is at stage s at slot 2k+s with its F and at
// 2k+2p-1-s with its B; the second pipeline is the first one in a mirror. Numbers of even ranks
// make the slots of the two disjoint. More than p microbatches go in units of p, 2p slots apart.
//
// Bubble with B as long as F, p | m: (p-2)/(2m+p-2). Peak activations of rank r for m >= p:
// from p/2+1 to p of one stage each. Two copies of the weights, whose gradients are summed.

#include <algorithm>
#include <vector>

#include "base/index.h"
#include "schedule/bidirectional_frame.h"

namespace pipert {
namespace {

struct Slotted {
  std::int64_t slot = 0;
  Action action;
};

// The actions of one microbatch on one rank: `k` counts those of its unit in its direction.
void add_microbatch(std::vector<Slotted>& actions, Rank rank, int num_ranks, int copy,
                    std::int64_t unit, int k, Microbatch microbatch) {
  const int step = copy == 0 ? rank : num_ranks - 1 - rank;  // the stage, counted in its copy
  const StageIndex stage = copy * num_ranks + step;
  const std::int64_t begin = 2 * num_ranks * unit + 2 * k;
  actions.push_back({begin + step, forward(stage, microbatch)});
  actions.push_back({begin + 2 * num_ranks - 1 - step, backward(stage, microbatch)});
}

std::vector<Action> rank_actions(Rank rank, int num_ranks, int num_microbatches) {
  std::vector<Slotted> slotted;
  slotted.reserve(2 * as_index(num_microbatches));
  for (Microbatch first = 0; first < num_microbatches; first += num_ranks) {
    const int half = std::min(num_ranks, num_microbatches - first) / 2;
    for (int copy = 0; copy < 2; ++copy) {
      for (int k = 0; k < half; ++k) {
        add_microbatch(slotted, rank, num_ranks, copy, first / num_ranks, k,
                       first + copy * half + k);
      }
    }
  }
  std::sort(slotted.begin(), slotted.end(),
            [](const Slotted& a, const Slotted& b) { return a.slot < b.slot; });
  std::vector<Action> actions;
  actions.reserve(slotted.size());
  for (const Slotted& each : slotted) actions.push_back(each.action);
  return actions;
}

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = bidirectional_frame("chimera", request);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] =
        rank_actions(rank, request.num_ranks, request.num_microbatches);
  }
  return schedule;
}

}  // namespace

extern const Generator kChimera;
const Generator kChimera{
    .name = "chimera",
    .summary = "two pipelines in opposite directions over two copies of the model",
    .options = {},
    .build = build};

}  // namespace pipert

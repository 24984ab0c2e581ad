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

using Make = Action(StageIndex, Microbatch);

// The forwards, or the backwards, that a rank does for one copy, by slot.
std::vector<Slotted> sequence(Rank rank, int num_ranks, int num_microbatches, int copy, Make make) {
  const int step = copy == 0 ? rank : num_ranks - 1 - rank;  // the stage, counted in its copy
  const int offset = make == forward ? step : 2 * num_ranks - 1 - step;
  std::vector<Slotted> result;
  result.reserve(as_index(num_microbatches) / 2);
  for (Microbatch first = 0; first < num_microbatches; first += num_ranks) {
    const int half = std::min(num_ranks, num_microbatches - first) / 2;
    for (int k = 0; k < half; ++k) {  // k counts those of a unit in its direction
      const std::int64_t begin = std::int64_t{2} * first + 2 * k;  // a unit takes 2p slots
      result.push_back({begin + offset, make(copy * num_ranks + step, first + copy * half + k)});
    }
  }
  return result;
}

std::vector<Slotted> merged(const std::vector<Slotted>& a, const std::vector<Slotted>& b) {
  std::vector<Slotted> result(a.size() + b.size());
  std::merge(a.begin(), a.end(), b.begin(), b.end(), result.begin(),
             [](const Slotted& x, const Slotted& y) { return x.slot < y.slot; });
  return result;
}

std::vector<Action> rank_actions(Rank rank, int num_ranks, int num_microbatches) {
  const auto of = [&](int copy, Make make) {
    return sequence(rank, num_ranks, num_microbatches, copy, make);
  };
  const std::vector<Slotted> slotted =
      merged(merged(of(0, forward), of(1, forward)), merged(of(0, backward), of(1, backward)));
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
    .build = build,
    .num_copies = 2};

}  // namespace pipert

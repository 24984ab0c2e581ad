#include "analysis/stage_chains.h"

#include <algorithm>

namespace pipert {

StageChains::StageChains(const Placement& placement, const StageTimes& times, StageIndex origin,
                         std::optional<Rank> rank)
    : placement_(placement),
      times_(times),
      origin_(origin),
      rank_(rank),
      forward_head_(at(placement.num_stages()), 0.0),
      input_head_(at(placement.num_stages()), 0.0),
      round_trip_(at(placement.num_stages()), 0.0),
      forward_tail_(at(placement.num_stages()), 0.0),
      input_tail_(at(placement.num_stages())) {
  const StageIndex last = placement.num_stages() - 1;
  for (StageIndex s = origin + 1; s <= last; ++s) {
    forward_head_[at(s)] =
        forward_head_[at(s - 1)] + times.forward[at(s - 1)] + times.activation[at(s)];
  }
  input_head_[at(last)] = forward_head_[at(last)] + times.forward[at(last)];
  for (StageIndex s = last - 1; s >= 0; --s) {
    input_head_[at(s)] = input_head_[at(s + 1)] + times.input[at(s + 1)] + times.gradient[at(s)];
    round_trip_[at(s)] = times.activation[at(s + 1)] + times.forward[at(s + 1)] +
                         round_trip_[at(s + 1)] + times.input[at(s + 1)] + times.gradient[at(s)];
  }
  for (StageIndex s = 0; s <= last; ++s) {
    std::optional<double>& tail = input_tail_[at(s)];
    if (s > 0 && input_tail_[at(s - 1)]) {
      tail = times.gradient[at(s - 1)] + times.input[at(s - 1)] + *input_tail_[at(s - 1)];
    }
    if (waits_for(s)) tail = std::max(tail.value_or(0.0), times.weight[at(s)]);
  }
  forward_tail_[at(last)] = times.input[at(last)] + input_tail_[at(last)].value_or(0.0);
  for (StageIndex s = last - 1; s >= 0; --s) {
    forward_tail_[at(s)] =
        times.activation[at(s + 1)] + times.forward[at(s + 1)] + forward_tail_[at(s + 1)];
  }
}

std::vector<ChainedLane> StageChains::lanes_of(Rank rank) const {
  std::vector<ChainedLane> lanes;
  for (const StageIndex stage : placement_.stages_of(rank)) {
    const std::size_t s = at(stage);
    if (stage >= origin_) {
      lanes.push_back({times_.forward[s], forward_head_[s], forward_tail_[s]});
    }
    if (input_tail_[s]) lanes.push_back({times_.input[s], input_head_[s], *input_tail_[s]});
    if (waits_for(stage)) {
      lanes.push_back({times_.weight[s], input_head_[s] + times_.input[s], 0.0});
    }
  }
  return lanes;
}

}  // namespace pipert

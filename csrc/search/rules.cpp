#include "search/rules.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "base/index.h"

namespace pipert {
namespace {

enum class Depth : std::uint8_t { kRoom, kBefore, kFill, kReach };
enum class First : std::uint8_t {
  kForward,       // of the latest stage
  kInput,         // of the latest stage
  kForwardEarly,  // of the earliest stage
  kOldest,  // the action that comes first on the chain of stages, a period for each microbatch
  kDepth,   // F until half of its depth is reached, then I
};
enum class Drain : std::uint8_t { kBusy, kBusyLast, kHalf, kPatient, kBusyFirst };

constexpr std::array<double, 8> kPatience = {0.0, 0.25, 0.5, 0.75, 0.95, 1.0, 1.5, 3.0};

// By stage, from the end of F to the start of I of a microbatch that never waits.
std::vector<double> round_trips(const StageTimes& times) {
  std::vector<double> trips(times.forward.size(), 0.0);
  for (std::size_t s = trips.size() - 1; s-- > 0;) {
    trips[s] = times.activation[s + 1] + times.forward[s + 1] + trips[s + 1] + times.input[s + 1] +
               times.gradient[s];
  }
  return trips;
}

double work_of_rank(const Workload& workload, Rank rank) {
  double work = 0.0;
  for (const StageIndex stage : workload.placement.stages_of(rank)) {
    const std::size_t s = as_index(stage);
    work += workload.times.forward[s] + workload.times.input[s] + workload.times.weight[s];
  }
  return work;
}

double longest_work(const Workload& workload) {
  double longest = 0.0;
  for (Rank rank = 0; rank < workload.placement.num_ranks(); ++rank) {
    longest = std::max(longest, work_of_rank(workload, rank));
  }
  return longest;
}

// Forwards of one microbatch on all stages of the stage's rank.
double forwards_of_rank(const Workload& workload, StageIndex stage) {
  double sum = 0.0;
  for (const StageIndex each : workload.placement.stages_of(workload.placement.rank_of(stage))) {
    sum += workload.times.forward[as_index(each)];
  }
  return sum;
}

int depth_of(Depth depth, StageIndex stage, double round_trip, const Workload& workload) {
  const int most = workload.num_microbatches;
  const double one = forwards_of_rank(workload, stage);
  const double forwards = one > 0.0 ? std::min<double>(round_trip / one, most) : most;
  constexpr double rounding = 1e-9;
  switch (depth) {
    case Depth::kRoom:
      return most;
    case Depth::kBefore:
      return std::min(most, 1 + static_cast<int>(forwards + rounding));
    case Depth::kFill:
      return std::min(most, 1 + static_cast<int>(std::ceil(forwards - rounding)));
    case Depth::kReach:
      return std::min(most, workload.placement.num_stages() - stage);
  }
  return most;
}

void set_priorities(GreedyRules& rules, First first, const Workload& workload,
                    const std::vector<double>& trips) {
  const int num_stages = workload.placement.num_stages();
  const bool by_time = first == First::kOldest;
  rules.period = by_time ? longest_work(workload) : first == First::kDepth ? 1.0 : 0.0;
  double head = 0.0;
  for (StageIndex stage = 0; stage < num_stages; ++stage) {
    const std::size_t s = as_index(stage);
    const double late = num_stages - stage;
    head += workload.times.activation[s];
    double forward = late;
    double input = late;
    switch (first) {
      case First::kForward:
        input += num_stages;
        break;
      case First::kInput:
        forward += num_stages;
        break;
      case First::kForwardEarly:
        forward = stage;
        input = 2.0 * num_stages - stage;
        break;
      case First::kOldest:
        forward = head;
        input = head + workload.times.forward[s] + trips[s];
        break;
      case First::kDepth:
        forward = -0.5 * rules.depth[s];
        input = 0.25;
        break;
    }
    rules.forward_offset.push_back(forward);
    rules.input_offset.push_back(input);
    head += workload.times.forward[s];
  }
}

void set_drain(GreedyRules& rules, Drain drain, int num_ranks) {
  const auto all = [&](double patience, double last) {
    rules.drain_patience.assign(as_index(num_ranks), patience);
    rules.last_patience = last;
  };
  switch (drain) {
    case Drain::kBusy:
      return all(0.0, 0.0);
    case Drain::kBusyLast:
      return all(0.0, 1.0);
    case Drain::kHalf:
      return all(0.5, 1.0);
    case Drain::kPatient:
      return all(1.0, 1.0);
    case Drain::kBusyFirst:
      all(1.0, 0.0);
      rules.drain_patience.front() = 0.0;
      return;
  }
}

}  // namespace

std::vector<GreedyRules> all_rules(const Workload& workload) {
  const std::vector<double> trips = round_trips(workload.times);
  std::vector<GreedyRules> all;
  for (const Depth depth : {Depth::kBefore, Depth::kRoom, Depth::kFill, Depth::kReach}) {
    for (const First first :
         {First::kForward, First::kInput, First::kForwardEarly, First::kOldest, First::kDepth}) {
      for (const double patience : {0.0, 0.5, 1.0}) {
        for (const Drain drain :
             {Drain::kBusy, Drain::kBusyLast, Drain::kHalf, Drain::kPatient, Drain::kBusyFirst}) {
          GreedyRules rules;
          for (StageIndex stage = 0; stage < workload.placement.num_stages(); ++stage) {
            rules.depth.push_back(depth_of(depth, stage, trips[as_index(stage)], workload));
          }
          set_priorities(rules, first, workload, trips);
          rules.patience = patience;
          set_drain(rules, drain, workload.placement.num_ranks());
          all.push_back(std::move(rules));
        }
      }
    }
  }
  return all;
}

void change_rules(GreedyRules& rules, const Workload& workload, Random& random) {
  const int num_stages = workload.placement.num_stages();
  const double unit = rules.period > 0.0 ? rules.period : num_stages;
  for (int changes = 1 + random.below(3); changes > 0; --changes) {
    const std::size_t stage = as_index(random.below(num_stages));
    switch (random.below(6)) {
      case 0:
      case 1:
        rules.depth[stage] = std::clamp(rules.depth[stage] + random.below(5) - 2, 1,
                                        std::max(1, workload.num_microbatches));
        break;
      case 2:
        rules.forward_offset[stage] += (random.fraction() - 0.5) * 2.0 * unit;
        break;
      case 3:
        rules.input_offset[stage] += (random.fraction() - 0.5) * 2.0 * unit;
        break;
      case 4:
        rules.patience = random.pick(kPatience);
        break;
      case 5:
        rules.drain_patience[as_index(random.below(workload.placement.num_ranks()))] =
            random.pick(kPatience);
        if (random.below(4) == 0) rules.last_patience = random.pick(kPatience);
        break;
    }
  }
}

}  // namespace pipert

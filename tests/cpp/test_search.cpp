// The search floor, and what it stands on: orders of lanes, their clock, list scheduling and bounds
// agree with simulate() and verify() on random workloads.

#include "search/search.h"

#include <algorithm>
#include <random>
#include <stdexcept>

#include "analysis/resolve_costs.h"
#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "search/rules.h"

namespace pipert {
namespace {

constexpr int kRounds = 1500;

using Generator32 = std::mt19937;

int pick(Generator32& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

std::vector<double> numbers(Generator32& random, int size) {
  std::vector<double> values(as_index(pick(random, 0, 1) == 0 ? 1 : size));
  for (double& value : values) value = pick(random, 0, 40) / 8.0 + 0.1 * pick(random, 0, 3);
  return values;
}

Placement random_placement(Generator32& random) {
  const int num_ranks = pick(random, 1, 4);
  std::vector<Rank> ranks;
  for (Rank rank = 0; rank < num_ranks; ++rank) ranks.push_back(rank);
  for (int more = pick(random, 0, 4); more > 0; --more) {
    ranks.push_back(pick(random, 0, num_ranks - 1));
  }
  std::shuffle(ranks.begin(), ranks.end(), random);
  return Placement(num_ranks, ranks);
}

// Without queues on links, so that a message takes what its edge takes.
Costs random_costs(Generator32& random, int num_stages) {
  Costs costs;
  costs.forward = numbers(random, num_stages);
  costs.input = numbers(random, num_stages);
  costs.weight = numbers(random, num_stages);
  costs.latency = EdgeCost(pick(random, 0, 6) / 3.0, {{{1, 0}, 0.7}, {{0, 1}, 0.1}});
  return costs;
}

double at(const std::vector<double>& values, int index) {
  return values.size() == 1 ? values.front() : values[as_index(index)];
}

// Limits between the least that can do and more than is ever needed.
MemoryCap random_cap(Generator32& random, const Placement& placement) {
  MemoryCap cap;
  cap.activation_size = numbers(random, placement.num_stages());
  cap.weight_share = pick(random, 0, 2) == 0 ? pick(random, 0, 10) / 10.0 : 1.0;
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    double least = 0.0;
    for (const StageIndex stage : placement.stages_of(rank))
      least += at(cap.activation_size, stage);
    cap.limit.push_back(least * (1.0 + pick(random, 0, 20) / 4.0));
  }
  return cap;
}

struct Problem {
  Costs costs;
  MemoryCap cap;
  Workload workload;
};

Problem random_problem(Generator32& random) {
  Problem problem;
  const Placement placement = random_placement(random);
  problem.costs = random_costs(random, placement.num_stages());
  if (placement.num_ranks() == 1) problem.costs.latency = EdgeCost(1.0);
  problem.cap = random_cap(random, placement);
  std::vector<double> sizes;
  for (StageIndex stage = 0; stage < placement.num_stages(); ++stage)
    sizes.push_back(at(problem.cap.activation_size, stage));
  problem.workload = {
      .placement = placement,
      .num_microbatches = pick(random, 1, 6),
      .times = resolve_costs(problem.costs, placement),
      .room = {
          .limit = problem.cap.limit, .size = sizes, .weight_share = problem.cap.weight_share}};
  return problem;
}

double longest(const Timeline& timeline) {
  return *std::max_element(timeline.spans.begin(), timeline.spans.end());
}

VerifyOptions options_of(const MemoryCap& cap) {
  VerifyOptions options;
  options.memory_limit = cap.limit;
  options.activation_size = cap.activation_size;
  return options;
}

void check_bounds(const Problem& problem, const Timeline& timeline) {
  const Bounds bounds = lower_bounds(problem.workload.placement, problem.workload.num_microbatches,
                                     problem.costs, problem.cap);
  CHECK(bounds.span.value <= longest(timeline) * (1.0 + 1e-9) + 1e-9);
  CHECK(bounds.makespan.value <= timeline.makespan * (1.0 + 1e-9) + 1e-9);
  CHECK(bounds.span.value <= bounds.makespan.value * (1.0 + 1e-9));
}

// Every list that the rules can make runs, keeps its limits and its word, and beats no bound.
void check_list_scheduling(Generator32& random) {
  const Problem problem = random_problem(random);
  const Workload& workload = problem.workload;
  const auto all = all_rules(workload);
  GreedyRules rules = all[as_index(pick(random, 0, static_cast<int>(all.size()) - 1))];
  Random changes(random());
  for (int i = pick(random, 0, 8); i > 0; --i) change_rules(rules, workload, changes);
  const GreedyOrder greedy = schedule_greedily(workload, rules);

  const Schedule schedule = to_schedule(greedy.lanes, workload, "greedy");
  CHECK(verify(schedule).ok());
  if (problem.cap.weight_share == 1.0) {
    CHECK(verify(schedule, options_of(problem.cap)).ok());
  }
  const Timeline timeline = simulate(schedule, problem.costs);
  OrderClock clock(workload);
  for (Rank rank = 0; rank < workload.placement.num_ranks(); ++rank) {
    CHECK(clock.keeps_limits(rank, greedy.lanes[as_index(rank)]));
  }
  const auto times = clock.run(greedy.lanes);
  CHECK(times.has_value());
  CHECK(times->makespan == timeline.makespan && times->longest_span == longest(timeline));
  CHECK(greedy.times.makespan >= timeline.makespan * (1.0 - 1e-12));
  CHECK(lane_order_of(schedule) == greedy.lanes);
  check_bounds(problem, timeline);
}

// After random exchanges an order is right, or the clock says that it is not, as verify() does.
void check_clock(Generator32& random) {
  const Problem problem = random_problem(random);
  const Workload& workload = problem.workload;
  LaneOrder order = schedule_greedily(workload, all_rules(workload).front()).lanes;
  for (int i = pick(random, 1, 12); i > 0; --i) {
    auto& lanes = order[as_index(pick(random, 0, workload.placement.num_ranks() - 1))];
    const int size = static_cast<int>(lanes.size());
    std::swap(lanes[as_index(pick(random, 0, size - 1))],
              lanes[as_index(pick(random, 0, size - 1))]);
  }
  OrderClock clock(workload);
  bool ordered = true;
  for (Rank rank = 0; rank < workload.placement.num_ranks(); ++rank) {
    ordered = ordered && clock.keeps_limits(rank, order[as_index(rank)]);
  }
  const Schedule schedule = to_schedule(order, workload, "shuffled");
  VerifyOptions options;
  if (problem.cap.weight_share == 1.0) {
    options = options_of(problem.cap);
  } else if (!ordered) {
    return;  // verify() does not know of shares that stay
  }
  const auto times = ordered ? clock.run(order) : std::nullopt;
  CHECK(times.has_value() == verify(schedule, options).ok());
  if (!times) return;
  const Timeline timeline = simulate(schedule, problem.costs);
  CHECK(times->makespan == timeline.makespan && times->longest_span == longest(timeline));
  CHECK(!clock.run(order, {.end = timeline.makespan * 0.99 - 0.01}).has_value());
  check_bounds(problem, timeline);
}

SearchRequest small_request() {
  SearchRequest request;
  request.costs.forward = {2.0};
  request.costs.input = {3.0};
  request.costs.weight = {1.5};
  request.costs.latency = 0.3;
  request.num_microbatches = 7;
  request.cap.limit = {5.0};
  request.placements = {Placement::v_shaped(3, 6), Placement::loop(3, 6)};
  return request;
}

void check_same_answer_on_any_number_of_threads() {
  SearchRequest request = small_request();
  request.iterations = 3000;
  request.num_threads = 1;
  const SearchResult one = search(request);
  request.num_threads = 3;
  const SearchResult three = search(request);
  CHECK(one.schedule == three.schedule && one.value == three.value);
  CHECK(one.source == three.source && one.iterations == three.iterations);
}

void check_stop() {
  SearchRequest request = small_request();
  request.time_limit = 1e9;
  int asked = 0;
  const SearchResult result = search(request, [&] { return ++asked > 2; });
  CHECK(verify(result.schedule, options_of(request.cap)).ok());
  CHECK(result.value >= result.bound * (1.0 - 1e-9));
  // It is never asked if the answer is perfect before.
  CHECK(asked > 2 || result.gap() < 1e-9);
  const auto interrupted = [&] {
    search(request, []() -> bool { throw std::range_error("stop"); });
  };
  if (asked > 2) CHECK_THROWS(interrupted(), std::range_error);
}

void check_bad_requests() {
  SearchRequest request = small_request();
  request.cap.limit = {1.5};
  CHECK_THROWS(search(request), ValueError);
  request = small_request();
  request.placements.clear();
  CHECK_THROWS(search(request), ValueError);
  request = small_request();
  request.placements.push_back(Placement::loop(3, 3));
  CHECK_THROWS(search(request), ValueError);
  request = small_request();
  request.costs.forward = {1.0, 2.0};
  CHECK_THROWS(search(request), ValueError);
}

}  // namespace
}  // namespace pipert

int main() {
  std::mt19937 random(20230101);
  for (int round = 0; round < pipert::kRounds; ++round) {
    pipert::check_list_scheduling(random);
    pipert::check_clock(random);
  }
  pipert::check_same_answer_on_any_number_of_threads();
  pipert::check_stop();
  pipert::check_bad_requests();
}

// balance(): against all cuts of small models, and in time on large ones.

#include "search/balance.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "analysis/simulate.h"
#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "schedule/registry.h"
#include "search/loads.h"
#include "search/step_balance.h"

namespace pipert {
namespace {

constexpr int kRounds = 3000;

using Generator32 = std::mt19937;

int pick(Generator32& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

std::vector<double> numbers(Generator32& random, int size, int most) {
  std::vector<double> values;
  for (int i = 0; i < size; ++i) values.push_back(pick(random, 0, most) / 2.0);
  return values;
}

struct Case {
  Placement placement;
  bool is_exact;
};

Case random_placement(Generator32& random) {
  const int num_ranks = pick(random, 2, 4);
  switch (pick(random, 0, 4)) {
    case 0: {
      std::vector<Rank> ranks;
      for (Rank rank = 0; rank < num_ranks; ++rank) ranks.push_back(rank);
      std::shuffle(ranks.begin(), ranks.end(), random);
      return {.placement = Placement(num_ranks, ranks), .is_exact = true};
    }
    case 1:
      return {.placement = Placement::bidirectional(num_ranks), .is_exact = true};
    case 2:
      return {.placement = Placement::loop(num_ranks, 2 * num_ranks), .is_exact = false};
    case 3:
      return {.placement = Placement::loop(1, num_ranks), .is_exact = num_ranks == 2};
    default:
      return {.placement = Placement::v_shaped(num_ranks, 2 * num_ranks), .is_exact = true};
  }
}

struct Problem {
  BalanceRequest request;
  bool is_exact;
};

Problem random_problem(Generator32& random) {
  const auto [placement, is_exact] = random_placement(random);
  const int num_stages = placement.num_stages();
  const int num_layers = placement.stages_per_copy() + pick(random, 0, 5);
  const auto measure = [&] {
    std::vector<double> once = numbers(random, num_layers, 12);
    if (pick(random, 0, 1) == 0) return Measure(once);
    const std::vector<double> each = numbers(random, num_layers, 6);
    return Measure(once, each, numbers(random, num_stages, 6));
  };
  BalanceRequest request{.work = measure(), .held = measure(), .limit = {}, .placement = placement};
  if (pick(random, 0, 2) > 0) {
    request.limit = numbers(random, pick(random, 0, 1) ? 1 : placement.num_ranks(), 80);
  }
  return {.request = request, .is_exact = is_exact};
}

void for_all_cuts(int num_layers, int num_stages, Cuts& cuts,
                  const std::function<void(const Cuts&)>& look) {
  if (num_stages == 1) {
    cuts.push_back(num_layers);
    look(cuts);
    cuts.pop_back();
    return;
  }
  for (int first = 1; first <= num_layers - num_stages + 1; ++first) {
    cuts.push_back(first);
    for_all_cuts(num_layers - first, num_stages - 1, cuts, look);
    cuts.pop_back();
  }
}

double sum_of(const Measure& measure, const Placement& placement, Rank rank, const Cuts& cuts) {
  double sum = 0.0;
  for (const StageIndex stage : placement.stages_of(rank)) {
    const int piece = stage % placement.stages_per_copy();
    int begin = 0;
    for (int i = 0; i < piece; ++i) begin += cuts[as_index(i)];
    sum += measure.of(stage, begin, begin + cuts[as_index(piece)]);
  }
  return sum;
}

// The longest rank; infinite where a limit isn't kept.
double value_of(const BalanceRequest& request, const Cuts& cuts) {
  double longest = 0.0;
  for (Rank rank = 0; rank < request.placement.num_ranks(); ++rank) {
    if (!request.limit.empty()) {
      const double limit =
          request.limit.size() == 1 ? request.limit[0] : request.limit[as_index(rank)];
      if (sum_of(request.held, request.placement, rank, cuts) > limit * (1.0 + 1e-9)) {
        return std::numeric_limits<double>::infinity();
      }
    }
    longest = std::max(longest, sum_of(request.work, request.placement, rank, cuts));
  }
  return longest;
}

void check_no_cuts_are_better(Generator32& random) {
  const auto [request, is_exact] = random_problem(random);
  double best = std::numeric_limits<double>::infinity();
  Cuts cuts;
  for_all_cuts(request.work.num_layers(), request.placement.stages_per_copy(), cuts,
               [&](const Cuts& tried) { best = std::min(best, value_of(request, tried)); });
  if (best == std::numeric_limits<double>::infinity()) {
    CHECK_THROWS(balance(request), ValueError);
    return;
  }
  Balance found;
  try {
    found = balance(request);
  } catch (const ValueError&) {
    CHECK(!is_exact);
    return;
  }
  const double value = value_of(request, found.cuts);
  CHECK(std::abs(value - found.longest) <= 1e-6 * value);
  CHECK(found.bound <= best * (1.0 + 1e-6));
  CHECK(value >= best);
  if (is_exact) CHECK(value <= best * (1.0 + 1e-6) && found.bound == found.longest);
  for (Rank rank = 0; rank < request.placement.num_ranks(); ++rank) {
    CHECK(std::abs(found.held[as_index(rank)] -
                   sum_of(request.held, request.placement, rank, found.cuts)) <= 1e-6);
  }
}

Balance balanced(std::vector<double> work, Placement placement, std::vector<double> limit = {}) {
  const Measure measure(std::move(work));
  return balance(
      {.work = measure, .held = measure, .limit = std::move(limit), .placement = placement});
}

// Of V placements and loops: no simulated step is longer than with the cuts that are best by rank.
void check_steps(Generator32& random) {
  const int num_ranks = pick(random, 1, 4);
  const bool is_v = pick(random, 0, 1) == 1;
  const Placement placement = is_v ? Placement::v_shaped(num_ranks, 2 * num_ranks)
                                   : Placement::loop(num_ranks, 2 * num_ranks);
  const int num_layers = 2 * num_ranks + pick(random, 0, 8);
  Costs layers;
  layers.forward = numbers(random, num_layers, 12);
  layers.input = layers.forward;
  layers.weight = layers.forward;
  const Measure work(layers.forward);
  BalanceRequest request{.work = work, .held = work, .limit = {}, .placement = placement};
  if (pick(random, 0, 1) == 1) {
    request.limit = {balance(request).longest * pick(random, 10, 12) / 10.0};
  }
  const Balance by_rank = balance(request);
  const Schedule schedule =
      build_schedule(is_v ? "zb_v" : "looped_bfs", {.num_ranks = num_ranks,
                                                    .num_microbatches = 2 * num_ranks,
                                                    .num_stages = 2 * num_ranks,
                                                    .options = {}});
  const Balance found = step_balance(request, layers, schedule);
  const auto end = [&](const Cuts& cuts) {
    return simulate(schedule, stage_costs(layers, cuts)).makespan;
  };
  CHECK(end(found.cuts) <= end(by_rank.cuts));
  CHECK(value_of(request, found.cuts) < std::numeric_limits<double>::infinity());
  CHECK(found.longest >= found.bound * (1.0 - 1e-9));
}

void check_shares() {
  std::vector<double> work(12, 1.0);
  CHECK((balanced(work, Placement::loop(4, 4)).cuts == Cuts{3, 3, 3, 3}));
  work.back() = 4.0;
  work.push_back(1.0);
  std::swap(work[11], work[12]);  // a head that costs four layers
  CHECK((balanced(work, Placement::loop(4, 4)).cuts == Cuts{4, 4, 4, 1}));
  // Ten layers can't be four alike: the longest has three, and none has one.
  Cuts cuts = balanced(std::vector<double>(10, 1.0), Placement::loop(4, 4)).cuts;
  std::sort(cuts.begin(), cuts.end());
  CHECK((cuts == Cuts{2, 2, 3, 3}));
  // The two stages of rank 0 are as long as the two of rank 1.
  const Balance v = balanced({3.0, 1.0, 1.0, 1.0, 1.0, 1.0}, Placement::v_shaped(2, 4));
  CHECK(v.longest == 4.0 && v.bound == 4.0);
}

void check_bad_requests() {
  CHECK_THROWS(balanced({1.0}, Placement::loop(2, 2)), ValueError);
  CHECK_THROWS(balanced({1.0, 3.0}, Placement::loop(2, 2), {2.0}), ValueError);
  CHECK_THROWS(balanced({1.0, 1.0}, Placement::loop(2, 2), {2.0, 2.0, 2.0}), ValueError);
  const BalanceRequest request{.work = Measure({1.0, 1.0}),
                               .held = Measure({1.0}),
                               .limit = {},
                               .placement = Placement::loop(1, 1)};
  CHECK_THROWS(balance(request), ValueError);
  CHECK_THROWS(Measure({1.0, -1.0}), ValueError);
  CHECK_THROWS(Measure({1.0, 1.0}, {1.0}, {1.0}), ValueError);
  CHECK_THROWS(Measure({1.0}, {1.0}), ValueError);
  const Measure two_stages({1.0, 1.0}, {1.0, 1.0}, {1.0, 1.0});
  CHECK_THROWS(balance({.work = two_stages,
                        .held = Measure({1.0, 1.0}),
                        .limit = {},
                        .placement = Placement::loop(1, 1)}),
               ValueError);
}

}  // namespace
}  // namespace pipert

int main() {
  std::mt19937 random(20230101);
  for (int round = 0; round < pipert::kRounds; ++round) pipert::check_no_cuts_are_better(random);
  for (int round = 0; round < 60; ++round) pipert::check_steps(random);
  pipert::check_shares();
  pipert::check_bad_requests();
}

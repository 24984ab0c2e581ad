#include "search/walk.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/index.h"
#include "search/rules.h"

namespace pipert {
namespace {

constexpr double kShareOfEnds = 0.02;  // of the mean end, in the cost
constexpr std::int64_t kTriesBetweenLooks = 32;
constexpr double kRounding = 1e-12;

// Moves the element at `from` to `to`; what is between goes one place the other way.
void shift(std::vector<LaneCode>& lanes, std::size_t from, std::size_t to) {
  const auto at = [&](std::size_t i) { return lanes.begin() + static_cast<std::ptrdiff_t>(i); };
  if (from < to) {
    std::rotate(at(from), at(from + 1), at(to + 1));
  } else {
    std::rotate(at(to), at(from), at(from + 1));
  }
}

}  // namespace

Walk::Walk(const Workload& workload, Objective objective, double bound, std::uint64_t seed)
    : workload_(workload),
      objective_(objective),
      target_(bound * (1.0 + kRounding)),
      random_(seed),
      clock_(workload) {
  for (std::size_t s = 0; s < workload.times.forward.size(); ++s) {
    least_sum_ += workload.num_microbatches *
                  (workload.times.forward[s] + workload.times.input[s] + workload.times.weight[s]);
  }
}

double Walk::cost_of(const OrderTimes& times) const {
  return value_of(times) + kShareOfEnds * times.sum_of_ends / workload_.placement.num_ranks();
}

void Walk::keep(const LaneOrder& order, double value, bool by_steps) {
  if (value >= best_value_) return;
  best_value_ = value;
  best_ = order;
  by_steps_ = by_steps;
}

void Walk::offer(const LaneOrder& order) {
  const auto times = clock_.run(order);
  if (times) keep(order, value_of(*times), false);
}

double Walk::try_one(const GreedyRules& rules) {
  const GreedyOrder order = schedule_greedily(workload_, rules);
  const double value = value_of(order.times);
  keep(order.lanes, value, false);
  return value;
}

std::int64_t Walk::try_rules(std::span<const GreedyRules> rules, const std::atomic<bool>& stop) {
  std::int64_t done = 0;
  for (const GreedyRules& each : rules) {
    const bool is_first = best_value_ == std::numeric_limits<double>::infinity();
    if (!is_first && (is_done() || stop.load(std::memory_order_relaxed))) break;
    const double value = try_one(each);
    ++done;
    if (value >= rules_value_) continue;
    rules_ = each;
    rules_value_ = value;
  }
  return done;
}

std::int64_t Walk::change_rules(std::int64_t tries, const std::atomic<bool>& stop) {
  if (!rules_) return 0;
  std::int64_t done = 0;
  for (; done < tries && !is_done() && !stop.load(std::memory_order_relaxed); ++done) {
    GreedyRules changed = *rules_;
    pipert::change_rules(changed, workload_, random_);
    const double value = try_one(changed);
    if (value > rules_value_) continue;  // an equal one is taken, to get around
    rules_ = std::move(changed);
    rules_value_ = value;
  }
  return done;
}

std::int64_t Walk::change_order(std::int64_t tries, const std::atomic<bool>& stop) {
  constexpr std::array<double, 4> heats = {3e-3, 3e-3, 1e-3, 3e-4};
  if (best_.empty()) return 0;
  order_ = best_;
  cost_ = cost_of(*clock_.run(order_));
  const double hot = best_value_ * random_.pick(heats);
  std::int64_t done = 0;
  for (; done < tries && !is_done(); ++done) {
    if (done % kTriesBetweenLooks == 0 && stop.load(std::memory_order_relaxed)) break;
    const double left = 1.0 - static_cast<double>(done) / static_cast<double>(tries);
    try_step(hot * left * left);
  }
  return done;
}

void Walk::try_step(double temperature) {
  const Rank rank = random_.below(workload_.placement.num_ranks());
  auto& lanes = order_[as_index(rank)];
  const int size = static_cast<int>(lanes.size());
  const int from = random_.below(size);
  constexpr std::array<int, 8> lengths = {1, 1, 1, 2, 2, 3, 5, 9};
  int way = random_.pick(lengths);
  if (random_.below(2) == 0) way = -way;
  const int to = std::clamp(from + way, 0, size - 1);
  if (lanes[as_index(from)] == lanes[as_index(to)]) return;
  shift(lanes, as_index(from), as_index(to));
  const double most = cost_ - temperature * std::log(1.0 - random_.fraction());
  const double rest = kShareOfEnds * least_sum_ / workload_.placement.num_ranks();
  OrderLimit limit;
  (objective_ == Objective::kSpan ? limit.span : limit.end) = most - rest;
  if (clock_.keeps_limits(rank, lanes)) {
    const auto times = clock_.run(order_, limit);
    if (times && cost_of(*times) <= most) {
      cost_ = cost_of(*times);
      keep(order_, value_of(*times), true);
      return;
    }
  }
  shift(lanes, as_index(to), as_index(from));
}

}  // namespace pipert

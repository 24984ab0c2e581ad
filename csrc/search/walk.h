// Walk: one of several searches that run at the same time, each with its own random numbers. It
// changes rules of list scheduling, or an order step by step, and keeps the best order that it has
// seen. One thread at a time.
//
// Note [Steps of the local search]
//
// A step moves one action of one rank a few places forth or back in the rank's list. It is taken if
// the order still keeps memory and can run, and costs less, or not much more: simulated annealing,
// whose temperature falls in each slice. The cost is the objective and, so that steps which change
// nothing at the end of the slowest rank still lead somewhere, a small share of the mean end of the
// ranks. The rest of the clock's run is spared where the work left alone makes it too slow.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "schedule/greedy.h"
#include "schedule/lane_order.h"
#include "search/objective.h"
#include "search/random.h"

namespace pipert {

class Walk {
 public:
  // Keeps `workload`, which must outlive it. No order is better than `bound`: a walk that has such
  // a one is done.
  Walk(const Workload& workload, Objective objective, double bound, std::uint64_t seed);

  // An order that was found elsewhere. It need not be better than the walk's own.
  void offer(const LaneOrder& order);

  // Each does at most `tries` and returns how many it did: fewer if `stop` is set, or the walk is
  // done. The first order of all is tried in any case.
  std::int64_t try_rules(std::span<const GreedyRules> rules, const std::atomic<bool>& stop);
  std::int64_t change_rules(std::int64_t tries, const std::atomic<bool>& stop);
  std::int64_t change_order(std::int64_t tries, const std::atomic<bool>& stop);

  double best_value() const { return best_value_; }  // infinity before anything was tried
  const LaneOrder& best() const { return best_; }
  // Whether the best order came from steps, not from list scheduling or elsewhere.
  bool best_is_by_steps() const { return by_steps_; }
  bool is_done() const { return best_value_ <= target_; }

 private:
  double value_of(const OrderTimes& times) const {
    return objective_ == Objective::kSpan ? times.longest_span : times.makespan;
  }
  double cost_of(const OrderTimes& times) const;
  void keep(const LaneOrder& order, double value, bool by_steps);
  double try_one(const GreedyRules& rules);
  void try_step(double temperature);

  const Workload& workload_;
  Objective objective_;
  double target_;
  Random random_;
  OrderClock clock_;
  double least_sum_ = 0.0;  // that the ends of all ranks add up to
  LaneOrder best_;
  double best_value_ = std::numeric_limits<double>::infinity();
  bool by_steps_ = false;
  std::optional<GreedyRules> rules_;  // the best so far
  double rules_value_ = std::numeric_limits<double>::infinity();
  LaneOrder order_;  // where the local search is
  double cost_ = std::numeric_limits<double>::infinity();
};

}  // namespace pipert

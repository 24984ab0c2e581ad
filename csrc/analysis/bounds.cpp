#include "analysis/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "analysis/resolve_costs.h"
#include "analysis/stage_chains.h"
#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"

// Note [Proofs of the bounds]
//
// A window is the time from the first start to the last end of one rank q, or of all ranks
// (makespan). The first action of rank q is a forward of its lowest stage o: any other action on q
// has one of those before it. So relative to the window's start, F(u) for u >= o starts no sooner
// than the chain of forwards from o to u allows, and every I(u) no sooner than that chain to the
// last stage and back to u; likewise an action ends no later than the chain from it down to a W on
// q, or on any rank, allows before the window's end (StageChains). B is I, then W, without a pause,
// and its gradient leaves later than I's, so what holds for I and W holds for it.
//
// work, path: take any set X of actions on one rank, all inside the window. The rank does one at a
// time, so the window is at least (the earliest start of any in X) + (the sum of X) + (the shortest
// time from the end of any in X to the window's end). X goes over the sets that thresholds on both
// times pick out; with X all actions of q this is the work of q.
//
// path, with memory: let X be all F and I of some stages of a rank, and x when the last of these I
// ends. The weight halves of those stages that are still to come hold `weight_share` of their
// activation each, together no more than the limit, which bounds what they take; the rest of them
// was done before x, so it counts in the sum too.
//
// fill and drain, of rank q: until its first I it can only do forwards, none of which frees
// anything, so no more than there is room for; what they leave of the chain from o to that I is
// idle. Its last forward is of its highest stage t, of some microbatch j: all its stages' forwards
// of j come before. From the end of that to I(t, j), and on to I(o, j), it can only do I and W of
// what is alive then besides j's own activations, and I and W of j above o. Memory bounds the
// former (a whole activation gives I and W, `weight_share` of one gives W). What is left is idle.
// If all forwards can't be alive at once, some I comes before the last forward, so the two windows
// don't overlap, and both add to the work.
//
// in flight, of rank q: the activation of (u, m) is alive from the start of F to the end of I, and
// `weight_share` of it while W runs, at least as long as the chain from u to the last stage and
// back; the sum over all, times size, is no more than the limit times the window.

namespace pipert {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void require_cap(const Placement& placement, const MemoryCap& cap) {
  require_one_or_each("activation_size", cap.activation_size, placement.num_stages(), "num_stages");
  if (!(cap.weight_share >= 0.0 && cap.weight_share <= 1.0))
    throw ValueError(concat("weight_share must be from 0 to 1, got ", cap.weight_share));
  if (cap.limit.empty()) return;
  require_one_or_each("memory_limit", cap.limit, placement.num_ranks(), "num_ranks");
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    double least = 0.0;
    for (const StageIndex stage : placement.stages_of(rank)) {
      least += one_of(cap.activation_size, stage);
    }
    const double limit = one_of(cap.limit, rank);
    if (least > limit * (1.0 + 1e-9)) {
      throw ValueError(concat("memory_limit must be at least ", least, " on rank ", rank,
                              " (one activation of each of its stages), got ", limit));
    }
  }
}

// Things of which some are taken: `count` of each, that give `value` for `weight`.
struct Item {
  double value = 0.0;
  double weight = 0.0;
  double count = 0.0;
};

// The most that fractions of them give within `capacity`.
double most_value(std::vector<Item> items, double capacity) {
  std::sort(items.begin(), items.end(),
            [](const Item& a, const Item& b) { return a.value * b.weight > b.value * a.weight; });
  double value = 0.0;
  for (const Item& item : items) {
    const double whole = item.count * item.weight;
    if (whole <= capacity) {
      value += item.count * item.value;
      capacity -= whole;
    } else if (item.weight > 0.0) {
      value += capacity / item.weight * item.value;
      capacity = 0.0;
    }
  }
  return value;
}

class Calculation {
 public:
  Calculation(const Placement& placement, int num_microbatches, const Costs& costs,
              const MemoryCap& cap)
      : placement_(placement),
        count_(num_microbatches),
        times_(resolve_costs(costs, placement)),
        cap_(cap) {}

  Bounds run() {
    for (Rank rank = 0; rank < placement_.num_ranks(); ++rank) {
      const StageIndex lowest = placement_.stages_of(rank).front();
      const StageChains chains(placement_, times_, lowest, rank);
      const double before = head_of(lowest);
      const auto both = [&](BoundReason reason, double span) {
        raise(bounds_.span, reason, rank, span);
        raise(bounds_.makespan, reason, rank, span + before);
      };
      both(BoundReason::kWork, work_of(rank));
      both(BoundReason::kInFlight, in_flight(rank, chains));
      both(BoundReason::kFillAndDrain, work_of(rank) + fill_and_drain(rank, chains));
      for (Rank other = 0; other < placement_.num_ranks(); ++other) {
        raise(bounds_.span, BoundReason::kPath, other, path(other, chains));
      }
    }
    const StageChains chains(placement_, times_, 0, std::nullopt);
    for (Rank rank = 0; rank < placement_.num_ranks(); ++rank) {
      raise(bounds_.makespan, BoundReason::kPath, rank, path(rank, chains));
    }
    return bounds_;
  }

 private:
  // A reason that came before stands unless the value is larger by more than rounding.
  static void raise(Bound& bound, BoundReason reason, Rank rank, double value) {
    if (value > bound.value * (1.0 + 1e-12)) bound = {value, reason, rank};
  }

  double forward(StageIndex stage) const { return times_.forward[as_index(stage)]; }
  double input(StageIndex stage) const { return times_.input[as_index(stage)]; }
  double weight(StageIndex stage) const { return times_.weight[as_index(stage)]; }
  double size(StageIndex stage) const { return one_of(cap_.activation_size, stage); }
  double limit(Rank rank) const {
    return cap_.limit.empty() ? kInfinity : one_of(cap_.limit, rank);
  }

  double head_of(StageIndex stage) const {
    double head = 0.0;
    for (StageIndex s = 0; s < stage; ++s) head += forward(s) + times_.activation[as_index(s + 1)];
    return head;
  }

  double work_of(Rank rank) const {
    double work = 0.0;
    for (const StageIndex s : placement_.stages_of(rank)) work += forward(s) + input(s) + weight(s);
    return count_ * work;
  }

  // Room for whole activations alone is a multiple of their size, where that is the same for all.
  double whole(Rank rank, double room) const {
    const auto own = placement_.stages_of(rank);
    const double unit = size(own.front());
    const bool same =
        std::all_of(own.begin(), own.end(), [&](StageIndex s) { return size(s) == unit; });
    if (!same || unit == 0.0 || room == kInfinity) return room;
    return std::floor(room / unit * (1.0 + 1e-9)) * unit;
  }

  double in_flight(Rank rank, const StageChains& chains) const {
    double held = 0.0;
    for (const StageIndex s : placement_.stages_of(rank)) {
      const double whole = forward(s) + chains.round_trip(s) + input(s);
      held += size(s) * (whole + cap_.weight_share * weight(s));
    }
    return limit(rank) > 0.0 ? count_ * held / limit(rank) : 0.0;
  }

  double fill_and_drain(Rank rank, const StageChains& chains) const {
    const double fill = std::max(0.0, fill_of(rank, chains));
    const double drain = std::max(0.0, drain_of(rank, chains));
    double all = 0.0;
    for (const StageIndex s : placement_.stages_of(rank)) all += count_ * size(s);
    return all > limit(rank) * (1.0 + 1e-9) ? fill + drain : std::max(fill, drain);
  }

  double fill_of(Rank rank, const StageChains& chains) const {
    const auto own = placement_.stages_of(rank);
    std::vector<Item> forwards;
    for (const StageIndex s : own) forwards.push_back({forward(s), size(s), 1.0 * count_});
    return chains.input_head(own.back()) - most_value(forwards, whole(rank, limit(rank)));
  }

  double drain_of(Rank rank, const StageChains& chains) const {
    const auto own = placement_.stages_of(rank);
    const StageIndex lowest = own.front();
    const StageIndex highest = own.back();
    double room = limit(rank);
    double own_work = 0.0;  // of the last microbatch, above the lowest stage
    std::vector<Item> alive;
    for (const StageIndex s : own) {
      room -= size(s);
      if (s != lowest) own_work += input(s) + weight(s);
      alive.push_back({input(s) + weight(s), size(s), count_ - 1.0});
      if (cap_.weight_share < 1.0)
        alive.push_back({weight(s), cap_.weight_share * size(s), count_ - 1.0});
    }
    room = std::max(0.0, room);
    if (cap_.weight_share == 1.0) room = whole(rank, room);
    const double others = most_value(alive, room);
    const double to_highest = chains.round_trip(highest);
    const double to_lowest =
        to_highest + chains.input_head(lowest) - chains.input_head(highest) - own_work;
    return std::max(to_highest, to_lowest) - others;
  }

  // The largest over sets of actions of `rank`, for the window of `chains`.
  double path(Rank rank, const StageChains& chains) const {
    std::vector<ChainedLane> lanes = chains.lanes_of(rank);
    std::sort(lanes.begin(), lanes.end(), [](const ChainedLane& a, const ChainedLane& b) {
      return a.head > b.head;  // so that a prefix is all that start no sooner than its last
    });
    double best = 0.0;
    for (const ChainedLane& last : lanes) {
      double sum = 0.0;
      for (const ChainedLane& lane : lanes) {
        if (lane.tail < last.tail) continue;
        sum += count_ * lane.length;
        best = std::max(best, lane.head + sum + last.tail);
      }
    }
    return std::max(best, path_with_memory(rank, chains));
  }

  double path_with_memory(Rank rank, const StageChains& chains) const {
    if (limit(rank) == kInfinity || cap_.weight_share == 0.0) return 0.0;
    std::vector<StageIndex> stages;
    for (const StageIndex s : placement_.stages_of(rank)) {
      if (s >= chains.origin() && chains.input_tail(s)) stages.push_back(s);
    }
    double best = 0.0;
    // Heads grow with the stage, and so do tails: a set of neighbours has all that its ends allow.
    for (std::size_t first = 0; first < stages.size(); ++first) {
      double sum = 0.0;
      double weights = 0.0;
      std::vector<Item> pending;
      for (std::size_t i = first; i < stages.size(); ++i) {
        const StageIndex s = stages[i];
        sum += count_ * (forward(s) + input(s));
        weights += count_ * weight(s);
        pending.push_back({weight(s), cap_.weight_share * size(s), 1.0 * count_});
        const double room = cap_.weight_share == 1.0 ? whole(rank, limit(rank)) : limit(rank);
        const double done = std::max(0.0, weights - most_value(pending, room));
        best = std::max(best, chains.forward_head(stages[first]) + sum + done +
                                  *chains.input_tail(stages[first]));
      }
    }
    return best;
  }

  const Placement& placement_;
  int count_;  // of microbatches
  StageTimes times_;
  const MemoryCap& cap_;
  Bounds bounds_;
};

}  // namespace

Bounds lower_bounds(const Placement& placement, int num_microbatches, const Costs& costs,
                    const MemoryCap& cap) {
  if (num_microbatches < 1)
    throw ValueError(concat("num_microbatches must be at least 1, got ", num_microbatches));
  if (placement.num_copies() != 1) {
    throw ValueError(
        concat("bounds are for one copy of the model, got ", placement.num_copies(), " copies"));
  }
  require_cap(placement, cap);
  return Calculation(placement, num_microbatches, costs, cap).run();
}

std::string_view reason_name(BoundReason reason) {
  switch (reason) {
    case BoundReason::kWork:
      return "work";
    case BoundReason::kFillAndDrain:
      return "fill and drain";
    case BoundReason::kPath:
      return "path";
    case BoundReason::kInFlight:
      return "in flight";
  }
  return "";
}

}  // namespace pipert

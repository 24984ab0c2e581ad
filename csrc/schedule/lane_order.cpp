#include "schedule/lane_order.h"

#include <algorithm>
#include <utility>

#include "base/index.h"
#include "schedule/halves.h"

namespace pipert {
namespace {

// By stage: which of its rank's stages it is.
std::vector<int> slots_of(const Placement& placement) {
  std::vector<int> slots(as_index(placement.num_stages()));
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    int slot = 0;
    for (const StageIndex stage : placement.stages_of(rank)) slots[as_index(stage)] = slot++;
  }
  return slots;
}

LaneCode code_of(int slot, LaneCode kind) { return static_cast<LaneCode>(3 * slot + kind); }

class Reader {
 public:
  explicit Reader(const Schedule& schedule)
      : slots_(slots_of(schedule.placement)), next_(3 * slots_.size(), 0) {}

  // False if the action is none of a lane, or not the lane's next.
  bool read(const Action& action, std::vector<LaneCode>& lanes) {
    const ActionKind kind = action.kind;
    if (kind == ActionKind::kForward) return add(action, kForwardLane, lanes);
    if (kind == ActionKind::kInputGrad) return add(action, kInputLane, lanes);
    if (kind == ActionKind::kWeightGrad) return add(action, kWeightLane, lanes);
    return kind == ActionKind::kBackward && add(action, kInputLane, lanes) &&
           add(action, kWeightLane, lanes);
  }

 private:
  bool add(const Action& action, LaneCode kind, std::vector<LaneCode>& lanes) {
    Microbatch& next = next_[3 * as_index(action.stage) + kind];
    if (action.microbatch != next) return false;
    ++next;
    lanes.push_back(code_of(slots_[as_index(action.stage)], kind));
    return true;
  }

  std::vector<int> slots_;
  std::vector<Microbatch> next_;  // by stage and kind
};

}  // namespace

std::optional<LaneOrder> lane_order_of(const Schedule& schedule) {
  if (schedule.placement.num_copies() != 1 || schedule.num_slices != 1) return std::nullopt;
  Reader reader(schedule);
  LaneOrder order;
  for (const auto& actions : schedule.ranks) {
    auto& lanes = order.emplace_back();
    for (const Action& action : actions) {
      if (!reader.read(action, lanes)) return std::nullopt;
    }
  }
  return order;
}

Schedule to_schedule(const LaneOrder& order, const Workload& workload, std::string name) {
  Schedule schedule{.name = std::move(name),
                    .num_microbatches = workload.num_microbatches,
                    .placement = workload.placement,
                    .ranks = {}};
  for (Rank rank = 0; rank < workload.placement.num_ranks(); ++rank) {
    const auto own = workload.placement.stages_of(rank);
    std::vector<Microbatch> next(3 * own.size(), 0);
    auto& actions = schedule.ranks.emplace_back();
    actions.reserve(order[as_index(rank)].size());
    for (const LaneCode code : order[as_index(rank)]) {
      const StageIndex stage = own[code / 3];
      const Microbatch m = next[code]++;
      const LaneCode kind = code % 3;
      actions.push_back(kind == kForwardLane ? forward(stage, m)
                        : kind == kInputLane ? input_half(stage, m)
                                             : weight_half(stage, m));
    }
  }
  return schedule;
}

OrderClock::OrderClock(const Workload& workload)
    : workload_(workload), work_(as_index(workload.placement.num_ranks()), 0.0) {
  const Placement& placement = workload.placement;
  const StageTimes& times = workload.times;
  const int last = placement.num_stages() - 1;
  const std::vector<int> slots = slots_of(placement);
  std::size_t lanes = 0;
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    first_lane_.push_back(lanes);
    lanes += 3 * placement.stages_of(rank).size();
  }
  const auto lane_at = [&](StageIndex stage, LaneCode kind) {
    return first_lane_[as_index(placement.rank_of(stage))] + code_of(slots[as_index(stage)], kind);
  };
  lanes_.resize(lanes);
  const auto connect = [&](std::size_t from, StageIndex to, LaneCode kind, double delay) {
    const std::size_t reader = lane_at(to, kind);
    lanes_[from].delay = delay;
    lanes_[from].read_by = static_cast<int>(reader);
    lanes_[from].reader = placement.rank_of(to);
    lanes_[reader].reads = static_cast<int>(from);
  };
  for (StageIndex stage = 0; stage <= last; ++stage) {
    const std::size_t s = as_index(stage);
    lanes_[lane_at(stage, kForwardLane)].length = times.forward[s];
    lanes_[lane_at(stage, kInputLane)].length = times.input[s];
    lanes_[lane_at(stage, kWeightLane)].length = times.weight[s];
    work_[as_index(placement.rank_of(stage))] +=
        workload.num_microbatches * (times.forward[s] + times.input[s] + times.weight[s]);
    if (stage == last) continue;
    connect(lane_at(stage, kForwardLane), stage + 1, kForwardLane, times.activation[s + 1]);
    connect(lane_at(stage + 1, kInputLane), stage, kInputLane, times.gradient[s]);
  }
  const auto num_microbatches = as_index(workload.num_microbatches);
  for (std::size_t i = 0; i < lanes; ++i) lanes_[i].end = i * num_microbatches;
  counts_.resize(lanes);
  arrivals_.resize(lanes * num_microbatches);
  clocks_.resize(as_index(placement.num_ranks()));
}

bool OrderClock::keeps_limits(Rank rank, const std::vector<LaneCode>& lanes) {
  const auto own = workload_.placement.stages_of(rank);
  const double limit = with_rounding(workload_.room.limit[as_index(rank)]);
  const double weight_share = workload_.room.weight_share;
  int* const counts = counts_.data() + first_lane_[as_index(rank)];
  std::fill_n(counts, 3 * own.size(), 0);
  double held = 0.0;
  for (const LaneCode code : lanes) {
    const double size = workload_.room.size[as_index(own[code / 3])];
    const LaneCode kind = code % 3;
    const int count = ++counts[code];
    if (kind == kForwardLane) {
      held += size;
      if (held > limit) return false;
    } else {
      if (count > counts[code - 1]) return false;
      held -= size * (kind == kInputLane ? 1.0 - weight_share : weight_share);
    }
  }
  return true;
}

std::optional<OrderTimes> OrderClock::run(const LaneOrder& order, const OrderLimit& limit) {
  std::fill(counts_.begin(), counts_.end(), 0);
  ready_.clear();
  for (std::size_t rank = order.size(); rank-- > 0;) {
    clocks_[rank] = {};
    ready_.push_back(static_cast<Rank>(rank));
  }
  while (!ready_.empty()) {
    const Rank rank = ready_.back();
    ready_.pop_back();
    if (!advance(rank, order[as_index(rank)], limit)) return std::nullopt;
  }
  OrderTimes times;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const Clock& clock = clocks_[rank];
    if (clock.position < order[rank].size()) return std::nullopt;
    times.makespan = std::max(times.makespan, clock.free_at);
    times.longest_span = std::max(times.longest_span, clock.free_at - clock.began_at);
    times.sum_of_ends += clock.free_at;
  }
  return times;
}

// As far as what the rank reads is there. False if it passes a limit.
bool OrderClock::advance(Rank rank, const std::vector<LaneCode>& lanes, const OrderLimit& limit) {
  Clock& clock = clocks_[as_index(rank)];
  const std::size_t first = first_lane_[as_index(rank)];
  clock.waits_for = -1;
  double now = clock.free_at;
  for (; clock.position < lanes.size(); ++clock.position) {
    const std::size_t index = first + lanes[clock.position];
    const Lane& lane = lanes_[index];
    const int microbatch = counts_[index];
    if (lane.reads >= 0) {
      if (counts_[as_index(lane.reads)] <= microbatch) {
        clock.waits_for = static_cast<int>(index);
        break;
      }
      const double arrival = arrivals_[lanes_[as_index(lane.reads)].end + as_index(microbatch)];
      if (arrival > now) {
        clock.idle += arrival - now;
        now = arrival;
      }
    }
    if (clock.position == 0) {
      clock.began_at = now;
      clock.idle = 0.0;
    }
    now += lane.length;
    ++counts_[index];
    if (lane.read_by < 0) continue;
    arrivals_[lane.end + as_index(microbatch)] = now + lane.delay;
    if (clocks_[as_index(lane.reader)].waits_for == lane.read_by) {
      clocks_[as_index(lane.reader)].waits_for = -1;
      ready_.push_back(lane.reader);
    }
  }
  clock.free_at = now;
  const double span = work_[as_index(rank)] + clock.idle;
  return span <= limit.span && clock.began_at + span <= limit.end;
}

}  // namespace pipert

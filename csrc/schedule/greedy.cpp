#include "schedule/greedy.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

enum class Lane : std::uint8_t { kNone, kForward, kInput, kWeight };

struct Choice {
  Lane lane = Lane::kNone;
  StageIndex stage = 0;
};

class Greedy {
 public:
  Greedy(const Workload& workload, const GreedyRules& rules)
      : placement_(workload.placement),
        num_microbatches_(workload.num_microbatches),
        times_(workload.times),
        room_(workload.room),
        rules_(rules),
        stages_(as_index(placement_.num_stages())),
        ranks_(as_index(placement_.num_ranks())) {
    for (Stage& stage : stages_) {
      stage.forward_ready.assign(as_index(num_microbatches_), kNever);
      stage.input_ready.assign(as_index(num_microbatches_), kNever);
    }
    std::fill(stages_.front().forward_ready.begin(), stages_.front().forward_ready.end(), 0.0);
    for (Rank rank = 0; rank < placement_.num_ranks(); ++rank) {
      const auto own = placement_.stages_of(rank);
      for (std::size_t i = 0; i < own.size(); ++i) at(own[i]).code = static_cast<LaneCode>(3 * i);
      ranks_[as_index(rank)].lanes.reserve(length_of(rank));
      wakes_.emplace(0.0, rank);
    }
  }

  GreedyOrder run() && {
    while (!wakes_.empty()) {
      const auto [now, rank] = wakes_.top();
      wakes_.pop();
      if (now < ranks_[as_index(rank)].free_at) continue;  // it looks again when it is free
      const Choice choice = choose(rank, now);
      if (choice.lane != Lane::kNone) start(rank, choice, now);
    }
    GreedyOrder order;
    for (Rank rank = 0; rank < placement_.num_ranks(); ++rank) {
      RankState& state = ranks_[as_index(rank)];
      if (state.lanes.size() < length_of(rank))
        throw InternalError("greedy: the ranks wait for each other");
      order.times.makespan = std::max(order.times.makespan, state.free_at);
      order.times.longest_span = std::max(order.times.longest_span, state.free_at - state.began_at);
      order.times.sum_of_ends += state.free_at;
      order.lanes.push_back(std::move(state.lanes));
    }
    return order;
  }

 private:
  struct Stage {
    std::vector<double> forward_ready;  // by microbatch: when its input is there
    std::vector<double> input_ready;
    Microbatch forwards = 0;  // how many have begun
    Microbatch inputs = 0;
    Microbatch weights = 0;
    LaneCode code = 0;  // of its F
  };

  struct RankState {
    double free_at = 0.0;
    double began_at = 0.0;
    std::vector<LaneCode> lanes;
    std::vector<StageIndex> weights;  // the stage of each I, oldest first
    std::size_t num_weights = 0;      // how many of their W have begun
  };

  // Of a rank that has nothing but weight halves to do.
  struct Gap {
    double next_message = kNever;  // when it ends, as far as that is known
    bool lacks_room = false;       // a forward could run if there were room
    bool has_forwards = false;     // there are forwards to come
    int inputs_left = 0;
  };

  std::size_t length_of(Rank rank) const {
    return 3 * placement_.stages_of(rank).size() * as_index(num_microbatches_);
  }

  using Wake = std::pair<double, Rank>;

  Stage& at(StageIndex stage) { return stages_[as_index(stage)]; }
  const Stage& at(StageIndex stage) const { return stages_[as_index(stage)]; }

  // See Note [Room for what comes next].
  bool has_room(Rank rank, StageIndex stage) const {
    const auto own = placement_.stages_of(rank);
    double reserved = 0.0;
    for (const StageIndex each : own) reserved += room_.size[as_index(each)];
    double held = room_.size[as_index(stage)];
    const double limit = with_rounding(room_.limit[as_index(rank)]);
    for (const StageIndex each : own) {
      const double size = room_.size[as_index(each)];
      held += size * (at(each).forwards - at(each).inputs +
                      room_.weight_share * (at(each).inputs - at(each).weights));
      reserved -= size;
      if (each >= stage && held + reserved > limit) return false;
    }
    return true;
  }

  Choice choose(Rank rank, double now) const {
    Choice best;
    double best_place = kNever;
    Gap gap;
    const auto consider = [&](Lane lane, StageIndex stage, double ready, double place) {
      if (ready > now) {
        gap.next_message = std::min(gap.next_message, ready);
      } else if (best.lane == Lane::kNone || place < best_place) {
        best = {lane, stage};
        best_place = place;
      }
    };
    for (const StageIndex s : placement_.stages_of(rank)) {
      const Stage& stage = at(s);
      gap.inputs_left += num_microbatches_ - stage.inputs;
      if (stage.inputs < stage.forwards) {
        consider(Lane::kInput, s, stage.input_ready[as_index(stage.inputs)],
                 rules_.input_offset[as_index(s)] + rules_.period * stage.inputs);
      }
      if (stage.forwards == num_microbatches_) continue;
      gap.has_forwards = true;
      if (stage.forwards - stage.inputs >= rules_.depth[as_index(s)]) continue;
      const double ready = stage.forward_ready[as_index(stage.forwards)];
      if (has_room(rank, s)) {
        consider(Lane::kForward, s, ready,
                 rules_.forward_offset[as_index(s)] + rules_.period * stage.forwards);
      } else {
        gap.lacks_room = gap.lacks_room || ready <= now;
      }
    }
    return best.lane == Lane::kNone ? choose_weight(rank, now, gap) : best;
  }

  Choice choose_weight(Rank rank, double now, const Gap& gap) const {
    const RankState& state = ranks_[as_index(rank)];
    if (state.num_weights == state.weights.size()) return {};
    const StageIndex stage = state.weights[state.num_weights];
    const double patience = gap.has_forwards       ? rules_.patience
                            : gap.inputs_left <= 1 ? rules_.last_patience
                                                   : rules_.drain_patience[as_index(rank)];
    const double least = patience * times_.weight[as_index(stage)];
    if (!gap.lacks_room && gap.next_message - now < least) return {};
    return {Lane::kWeight, stage};
  }

  void start(Rank rank, const Choice& choice, double now) {
    RankState& state = ranks_[as_index(rank)];
    Stage& stage = at(choice.stage);
    const std::size_t s = as_index(choice.stage);
    if (state.lanes.empty()) state.began_at = now;
    switch (choice.lane) {
      case Lane::kNone:
        return;
      case Lane::kForward: {
        const Microbatch m = stage.forwards++;
        push(state, stage.code + kForwardLane);
        state.free_at = now + times_.forward[s];
        if (choice.stage + 1 < placement_.num_stages()) {
          hand_over(choice.stage + 1, at(choice.stage + 1).forward_ready[as_index(m)],
                    state.free_at + times_.activation[s + 1]);
        } else {
          stage.input_ready[as_index(m)] = state.free_at;
        }
        break;
      }
      case Lane::kInput: {
        const Microbatch m = stage.inputs++;
        push(state, stage.code + kInputLane);
        state.weights.push_back(choice.stage);
        state.free_at = now + times_.input[s];
        if (choice.stage > 0) {
          hand_over(choice.stage - 1, at(choice.stage - 1).input_ready[as_index(m)],
                    state.free_at + times_.gradient[s - 1]);
        }
        break;
      }
      case Lane::kWeight:
        push(state, stage.code + kWeightLane);
        ++stage.weights;
        state.free_at = now + times_.weight[s];
        ++state.num_weights;
        break;
    }
    wakes_.emplace(state.free_at, rank);
  }

  static void push(RankState& state, int code) {
    state.lanes.push_back(static_cast<LaneCode>(code));
  }

  void hand_over(StageIndex stage, double& ready, double when) {
    ready = when;
    wakes_.emplace(when, placement_.rank_of(stage));
  }

  const Placement& placement_;
  int num_microbatches_;
  const StageTimes& times_;
  const ActivationRoom& room_;
  const GreedyRules& rules_;
  std::vector<Stage> stages_;
  std::vector<RankState> ranks_;
  // When to look at a rank; the earliest first.
  std::priority_queue<Wake, std::vector<Wake>, std::greater<>> wakes_;
};

}  // namespace

GreedyOrder schedule_greedily(const Workload& workload, const GreedyRules& rules) {
  return Greedy(workload, rules).run();
}

}  // namespace pipert

#include "analysis/local_order.h"

#include "analysis/dependencies.h"
#include "analysis/transfers.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// In a lowered schedule a compute action reads what its own RECV brought.
Action receive_for(const Action& reader) {
  const bool is_forward = reader.kind == ActionKind::kForward;
  return as_kind(reader, is_forward ? ActionKind::kRecvForward : ActionKind::kRecvBackward);
}

Verdict unordered(const Action& action, Place place, const Action& input, Place later) {
  Verdict verdict{Defect::kUnordered,
                  concat(to_string(action), " on rank ", place.rank, " runs before its input ",
                         to_string(input), " on the same rank")};
  verdict.counterexample.add(place, action, Role::kCulprit, concat("needs ", to_string(input)));
  verdict.counterexample.add(later, input, Role::kRelated, "comes later");
  verdict.counterexample.waits.push_back({0, 1, WaitReason::kInput});
  return verdict;
}

enum class Shards : std::uint8_t { kUntouched, kSharded, kUnsharded };

class ParameterCheck {
 public:
  explicit ParameterCheck(const Schedule& schedule)
      : schedule_(schedule),
        shards_(as_index(schedule.num_stages()), Shards::kUntouched),
        reduced_(as_index(schedule.num_stages()), false) {
    for (const auto& actions : schedule.ranks) {
      for (const Action& action : actions) {
        const bool touches =
            action.kind == ActionKind::kUnshard || action.kind == ActionKind::kReshard;
        if (touches) shards_[as_index(action.stage)] = Shards::kSharded;
      }
    }
  }

  Verdict run() {
    for (rank_ = 0; rank_ < schedule_.num_ranks(); ++rank_) {
      const auto& actions = schedule_.ranks[as_index(rank_)];
      for (position_ = 0; position_ < static_cast<int>(actions.size()); ++position_) {
        Verdict verdict = step(actions[as_index(position_)]);
        if (!verdict.ok()) return verdict;
      }
    }
    return {};
  }

 private:
  Verdict step(const Action& action) {
    Shards& shards = shards_[as_index(action.stage)];
    switch (action.kind) {
      case ActionKind::kUnshard:
        if (shards == Shards::kUnsharded)
          return found(Defect::kDoubled, action, "is unsharded already");
        shards = Shards::kUnsharded;
        return {};
      case ActionKind::kReshard:
        if (shards != Shards::kUnsharded)
          return found(Defect::kUnordered, action, "is not unsharded");
        shards = Shards::kSharded;
        return {};
      case ActionKind::kReduceGrad:
        if (reduced_[as_index(action.stage)])
          return found(Defect::kDoubled, action, "has reduced its gradients already");
        reduced_[as_index(action.stage)] = true;
        return {};
      case ActionKind::kUpdate:
        reduced_[as_index(action.stage)] = false;
        return {};
      case ActionKind::kForward:
      case ActionKind::kInputGrad:
      case ActionKind::kRecompute:
        return check_unsharded(action, shards);
      case ActionKind::kBackward:
      case ActionKind::kWeightGrad:
        if (reduced_[as_index(action.stage)]) {
          return found(Defect::kUnordered, action, "has reduced its gradients already");
        }
        return check_unsharded(action, shards);
      case ActionKind::kSendForward:
      case ActionKind::kRecvForward:
      case ActionKind::kSendBackward:
      case ActionKind::kRecvBackward:
      case ActionKind::kOffload:
      case ActionKind::kReload:
      case ActionKind::kOverlap:
        return {};
    }
    return {};
  }

  Verdict check_unsharded(const Action& action, Shards shards) const {
    if (shards != Shards::kSharded) return {};
    return found(Defect::kUnordered, action, "is not unsharded");
  }

  Verdict found(Defect defect, const Action& action, std::string_view state) const {
    Verdict verdict{defect, concat(to_string(action), " on rank ", rank_, " runs when stage ",
                                   action.stage, " ", state)};
    verdict.counterexample.add({rank_, position_}, action, Role::kCulprit,
                               concat("stage ", action.stage, " ", state));
    return verdict;
  }

  const Schedule& schedule_;
  std::vector<Shards> shards_;  // by stage
  std::vector<bool> reduced_;   // by stage
  Rank rank_ = 0;
  int position_ = 0;
};

}  // namespace

Verdict check_local_order(const Schedule& schedule, const ActionIndex& index) {
  const bool lowered = is_lowered(schedule);
  const BackwardForms forms(schedule);
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Action& action = actions[as_index(i)];
      for (const Dependency& need : dependencies(action, schedule, forms)) {
        Action input = need.producer;
        Place place = index.find(input);
        if (place.rank != rank) {
          if (!lowered || !is_compute(action.kind)) continue;
          input = receive_for(action);
          place = index.find(input);
        }
        if (place.position > i) return unordered(action, {rank, i}, input, place);
      }
    }
  }
  return {};
}

Verdict check_parameters(const Schedule& schedule) { return ParameterCheck(schedule).run(); }

}  // namespace pipert

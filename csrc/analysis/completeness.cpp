#include "analysis/completeness.h"

#include <algorithm>
#include <utility>

#include "analysis/transfers.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

Verdict missing(const Action& action, const Schedule& schedule, std::string_view reason = {}) {
  const Rank rank = schedule.placement.rank_of(action.stage);
  return {Defect::kMissing, concat(to_string(action), " is missing on rank ", rank, reason)};
}

Action of_kind(ActionKind kind, StageIndex stage, Microbatch microbatch) {
  return {.kind = kind, .stage = stage, .microbatch = microbatch};
}

class Completeness {
 public:
  Completeness(const Schedule& schedule, const ActionIndex& index, const VerifyOptions& options)
      : schedule_(schedule), index_(index), options_(options), lowered_(is_lowered(schedule)) {}

  Verdict run() const {
    for (StageIndex stage = 0; stage < schedule_.num_stages(); ++stage) {
      for (Microbatch microbatch = 0; microbatch < schedule_.num_microbatches; ++microbatch) {
        Verdict verdict = check_compute(stage, microbatch);
        if (verdict.ok() && lowered_) verdict = check_transfers(stage, microbatch);
        if (!verdict.ok()) return verdict;
      }
    }
    return {};
  }

 private:
  bool has(const Action& action) const { return index_.find(action).exists(); }

  Verdict check_compute(StageIndex stage, Microbatch microbatch) const {
    const Action own_forward = forward(stage, microbatch);
    if (!has(own_forward)) return missing(own_forward, schedule_);
    if (options_.forward_only) return {};
    const Action whole = backward(stage, microbatch);
    const Action input = of_kind(ActionKind::kInputGrad, stage, microbatch);
    const Action weight = of_kind(ActionKind::kWeightGrad, stage, microbatch);
    if (has(whole)) {
      if (has(input)) return doubled_half(whole, input);
      if (has(weight)) return doubled_half(whole, weight);
      return {};
    }
    if (has(input) && has(weight)) return {};
    if (has(weight)) return missing(input, schedule_, concat(", for its half ", to_string(weight)));
    if (has(input)) return missing(weight, schedule_, concat(", for its half ", to_string(input)));
    return missing(whole, schedule_,
                   concat(" (nor are ", to_string(input), " and ", to_string(weight), " there)"));
  }

  Verdict doubled_half(const Action& whole, const Action& half) const {
    return {Defect::kDoubled,
            concat(to_string(half), " on rank ", schedule_.placement.rank_of(half.stage),
                   " does again what ", to_string(whole), " does")};
  }

  // Between (stage - 1, microbatch) and (stage, microbatch): the activation down and the gradient
  // up.
  Verdict check_transfers(StageIndex stage, Microbatch microbatch) const {
    const auto& placement = schedule_.placement;
    if (stage == 0 || placement.rank_of(stage - 1) == placement.rank_of(stage)) return {};
    const Verdict down = check_transfer(of_kind(ActionKind::kSendForward, stage - 1, microbatch),
                                        of_kind(ActionKind::kRecvForward, stage, microbatch));
    if (!down.ok() || options_.forward_only) return down;
    return check_transfer(of_kind(ActionKind::kSendBackward, stage, microbatch),
                          of_kind(ActionKind::kRecvBackward, stage - 1, microbatch));
  }

  Verdict check_transfer(const Action& send, const Action& receive) const {
    if (!has(send)) {
      return missing(send, schedule_, has(receive) ? concat(", for ", to_string(receive)) : "");
    }
    if (!has(receive)) return missing(receive, schedule_, concat(", for ", to_string(send)));
    return {};
  }

  const Schedule& schedule_;
  const ActionIndex& index_;
  const VerifyOptions& options_;
  bool lowered_;
};

}  // namespace

Verdict check_num_forwards(const Schedule& schedule) {
  const auto per_stage = as_index(schedule.num_microbatches);
  std::vector<std::pair<StageIndex, Microbatch>> forwards;
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      if (action.kind == ActionKind::kForward)
        forwards.emplace_back(action.stage, action.microbatch);
    }
  }
  if (forwards.size() >= as_index(schedule.num_stages()) * per_stage) return {};
  std::sort(forwards.begin(), forwards.end());
  forwards.erase(std::unique(forwards.begin(), forwards.end()), forwards.end());
  std::size_t i = 0;
  const auto wanted = [&] {
    return std::pair(static_cast<StageIndex>(i / per_stage),
                     static_cast<Microbatch>(i % per_stage));
  };
  while (i < forwards.size() && forwards[i] == wanted()) ++i;
  return missing(forward(wanted().first, wanted().second), schedule);
}

Verdict check_doubled(const Schedule& schedule, ActionIndex& index) {
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      if (index.insert(actions[as_index(i)], {rank, i})) continue;
      return {Defect::kDoubled,
              concat(to_string(actions[as_index(i)]), " is on rank ", rank, " twice")};
    }
  }
  return {};
}

Verdict check_complete(const Schedule& schedule, const ActionIndex& index,
                       const VerifyOptions& options) {
  return Completeness(schedule, index, options).run();
}

}  // namespace pipert

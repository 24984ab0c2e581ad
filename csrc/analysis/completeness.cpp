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
      : schedule_(schedule),
        index_(index),
        options_(options),
        lowered_(is_lowered(schedule)),
        copies_(copy_of_microbatches(schedule)) {}

  Verdict run() const {
    const int per_copy = schedule_.placement.stages_per_copy();
    for (StageIndex stage = 0; stage < schedule_.num_stages(); ++stage) {
      for (Microbatch microbatch = 0; microbatch < schedule_.num_microbatches; ++microbatch) {
        const bool passes = copies_[as_index(microbatch)] == stage / per_copy;
        Verdict verdict =
            passes ? check_compute(stage, microbatch) : check_other_copy(stage, microbatch);
        if (verdict.ok() && passes && lowered_) verdict = check_transfers(stage, microbatch);
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

  Verdict check_other_copy(StageIndex stage, Microbatch microbatch) const {
    for (const ActionKind kind :
         {ActionKind::kForward, ActionKind::kBackward, ActionKind::kInputGrad,
          ActionKind::kWeightGrad, ActionKind::kSendForward, ActionKind::kRecvForward,
          ActionKind::kSendBackward, ActionKind::kRecvBackward}) {
      const Action action = of_kind(kind, stage, microbatch);
      if (!has(action)) continue;
      return {Defect::kDoubled,
              concat(to_string(action), " on rank ", schedule_.placement.rank_of(stage),
                     ": microbatch ", microbatch, " passes copy ", copies_[as_index(microbatch)],
                     " of the model, stage ", stage, " is of copy ",
                     stage / schedule_.placement.stages_per_copy())};
    }
    return {};
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
    if (placement.is_first(stage) || placement.rank_of(stage - 1) == placement.rank_of(stage))
      return {};
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
  std::vector<int> copies_;  // by microbatch: the copy of the model that it passes
};

}  // namespace

std::vector<int> copy_of_microbatches(const Schedule& schedule) {
  std::vector<int> copies(as_index(schedule.num_microbatches), 0);
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      if (action.kind != ActionKind::kForward) continue;
      copies[as_index(action.microbatch)] = action.stage / schedule.placement.stages_per_copy();
    }
  }
  return copies;
}

Verdict check_num_forwards(const Schedule& schedule) {
  const auto per_stage = as_index(schedule.num_microbatches);
  std::vector<std::pair<StageIndex, Microbatch>> forwards;
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      if (action.kind == ActionKind::kForward)
        forwards.emplace_back(action.stage, action.microbatch);
    }
  }
  if (forwards.size() >= as_index(schedule.placement.stages_per_copy()) * per_stage) return {};
  // The copies are laid over each other: a microbatch passes one of them.
  const int per_copy = schedule.placement.stages_per_copy();
  for (auto& [stage, microbatch] : forwards) stage %= per_copy;
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

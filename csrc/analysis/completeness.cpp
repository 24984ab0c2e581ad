#include "analysis/completeness.h"

#include <algorithm>
#include <tuple>

#include "analysis/transfers.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

Verdict missing(const Action& action, const Schedule& schedule, std::string_view reason = {}) {
  const Rank rank = schedule.placement.rank_of(action.stage);
  Verdict verdict{Defect::kMissing,
                  concat(to_string(action), " is missing on rank ", rank, reason)};
  verdict.counterexample.add({rank, -1}, action, Role::kAbsent, "missing");
  return verdict;
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
        for (int slice = 0; slice < schedule_.num_slices; ++slice) {
          const Action own_forward = slice_of(forward(stage, microbatch), slice);
          Verdict verdict = passes ? check_compute(own_forward) : check_other_copy(own_forward);
          if (verdict.ok() && passes && lowered_) verdict = check_transfers(own_forward);
          if (!verdict.ok()) return verdict;
        }
      }
    }
    return {};
  }

 private:
  bool has(const Action& action) const { return index_.find(action).exists(); }

  Action slice_of(Action action, int slice) const {
    if (schedule_.num_slices > 1) action.slice = static_cast<Slice>(slice);
    return action;
  }

  Verdict check_compute(const Action& own_forward) const {
    if (!has(own_forward)) return missing(own_forward, schedule_);
    if (options_.forward_only) return {};
    const Verdict verdict = check_backward(own_forward);
    return verdict.ok() ? check_offload(own_forward) : verdict;
  }

  Verdict check_backward(const Action& own_forward) const {
    const Action whole = as_kind(own_forward, ActionKind::kBackward);
    const Action input = as_kind(own_forward, ActionKind::kInputGrad);
    const Action weight = as_kind(own_forward, ActionKind::kWeightGrad);
    if (has(whole)) {
      if (has(input)) return doubled_half(whole, input);
      if (has(weight)) return doubled_half(whole, weight);
      return {};
    }
    if (has(input) && has(weight)) return {};
    if (has(weight)) return missing_for(input, weight, ", for its half ");
    if (has(input)) return missing_for(weight, input, ", for its half ");
    return missing(whole, schedule_,
                   concat(" (nor are ", to_string(input), " and ", to_string(weight), " there)"));
  }

  Verdict check_offload(const Action& own_forward) const {
    const Action offload = as_kind(own_forward, ActionKind::kOffload);
    const Action reload = as_kind(own_forward, ActionKind::kReload);
    if (has(offload) == has(reload)) return {};
    return has(offload) ? missing_for(reload, offload, ", for ")
                        : missing_for(offload, reload, ", for ");
  }

  Verdict check_other_copy(const Action& own_forward) const {
    const StageIndex stage = own_forward.stage;
    const Microbatch microbatch = own_forward.microbatch;
    for (const ActionKind kind :
         {ActionKind::kForward, ActionKind::kBackward, ActionKind::kInputGrad,
          ActionKind::kWeightGrad, ActionKind::kSendForward, ActionKind::kRecvForward,
          ActionKind::kSendBackward, ActionKind::kRecvBackward, ActionKind::kRecompute,
          ActionKind::kOffload, ActionKind::kReload}) {
      const Action action = as_kind(own_forward, kind);
      if (!has(action)) continue;
      const int copy = copies_[as_index(microbatch)];
      Verdict verdict{
          Defect::kDoubled,
          concat(to_string(action), " on rank ", schedule_.placement.rank_of(stage),
                 ": microbatch ", microbatch, " passes copy ", copy, " of the model, stage ", stage,
                 " is of copy ", stage / schedule_.placement.stages_per_copy())};
      add(verdict, action, Role::kCulprit,
          concat("microbatch ", microbatch, " passes copy ", copy));
      const int per_copy = schedule_.placement.stages_per_copy();
      Action in_its_copy = action;
      in_its_copy.stage = stage % per_copy + copy * per_copy;
      add(verdict, in_its_copy, Role::kRelated, "");
      return verdict;
    }
    return {};
  }

  void add(Verdict& verdict, const Action& action, Role role, std::string note) const {
    const Place place = index_.find(action);
    if (place.exists()) verdict.counterexample.add(place, action, role, std::move(note));
  }

  Verdict missing_for(const Action& action, const Action& other, std::string_view why) const {
    Verdict verdict = missing(action, schedule_, concat(why, to_string(other)));
    add(verdict, other, Role::kRelated, "");
    return verdict;
  }

  Verdict doubled_half(const Action& whole, const Action& half) const {
    Verdict verdict{Defect::kDoubled,
                    concat(to_string(half), " on rank ", schedule_.placement.rank_of(half.stage),
                           " does again what ", to_string(whole), " does")};
    add(verdict, half, Role::kCulprit, concat("does again what ", to_string(whole), " does"));
    add(verdict, whole, Role::kRelated, "");
    return verdict;
  }

  // Between (stage - 1, microbatch) and (stage, microbatch): the activation down and the gradient
  // up.
  Verdict check_transfers(const Action& own_forward) const {
    const auto& placement = schedule_.placement;
    const StageIndex stage = own_forward.stage;
    if (placement.is_first(stage) || placement.rank_of(stage - 1) == placement.rank_of(stage))
      return {};
    Action before = own_forward;
    before.stage = stage - 1;
    const Verdict down = check_transfer(as_kind(before, ActionKind::kSendForward),
                                        as_kind(own_forward, ActionKind::kRecvForward));
    if (!down.ok() || options_.forward_only) return down;
    return check_transfer(as_kind(own_forward, ActionKind::kSendBackward),
                          as_kind(before, ActionKind::kRecvBackward));
  }

  Verdict check_transfer(const Action& send, const Action& receive) const {
    if (!has(send)) {
      return has(receive) ? missing_for(send, receive, ", for ") : missing(send, schedule_);
    }
    return has(receive) ? Verdict() : missing_for(receive, send, ", for ");
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
  const std::size_t num_slices = as_index(schedule.num_slices);
  const std::size_t per_stage = as_index(schedule.num_microbatches) * num_slices;
  std::vector<std::tuple<StageIndex, Microbatch, Slice>> forwards;
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      if (action.kind == ActionKind::kForward)
        forwards.emplace_back(action.stage, action.microbatch, action.slice);
    }
  }
  if (forwards.size() >= as_index(schedule.placement.stages_per_copy()) * per_stage) return {};
  // The copies are laid over each other: a microbatch passes one of them.
  const int per_copy = schedule.placement.stages_per_copy();
  for (auto& each : forwards) std::get<0>(each) %= per_copy;
  std::sort(forwards.begin(), forwards.end());
  forwards.erase(std::unique(forwards.begin(), forwards.end()), forwards.end());
  std::size_t i = 0;
  const auto wanted = [&] {
    const auto slice = static_cast<Slice>(i % num_slices);
    return std::tuple(static_cast<StageIndex>(i / per_stage),
                      static_cast<Microbatch>(i % per_stage / num_slices),
                      num_slices > 1 ? slice : kWholeSequence);
  };
  while (i < forwards.size() && forwards[i] == wanted()) ++i;
  const auto [stage, microbatch, slice] = wanted();
  return missing({.slice = slice, .stage = stage, .microbatch = microbatch}, schedule);
}

Verdict check_doubled(const Schedule& schedule, ActionIndex& index) {
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Action& action = actions[as_index(i)];
      if (index.insert(action, {rank, i})) continue;
      Verdict verdict{Defect::kDoubled, concat(to_string(action), " is on rank ", rank, " twice")};
      verdict.counterexample.add({rank, i}, action, Role::kCulprit, "again");
      verdict.counterexample.add(index.find(action), action, Role::kRelated, "once");
      return verdict;
    }
  }
  return {};
}

Verdict check_complete(const Schedule& schedule, const ActionIndex& index,
                       const VerifyOptions& options) {
  return Completeness(schedule, index, options).run();
}

}  // namespace pipert

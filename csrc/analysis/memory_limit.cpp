#include "analysis/memory_limit.h"

#include <string_view>
#include <utility>

#include "analysis/backward_forms.h"
#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

// What the activations of one rank take, action by action.
class Held {
 public:
  Held(const BackwardForms& forms, const VerifyOptions& options)
      : forms_(forms), options_(options) {}

  // What is held while the action runs.
  double begin(const Action& action) {
    held_ += size(action) * forms_.change(action).at_start;
    return held_;
  }

  void end(const Action& action) { held_ -= size(action) * freed_share(action); }

  bool frees(const Action& action) const { return freed_share(action) > 0.0; }

 private:
  double size(const Action& action) const { return one_of(options_.activation_size, action.stage); }

  double freed_share(const Action& action) const {
    if (action.kind == ActionKind::kInputGrad) return 1.0 - options_.weight_share;
    if (action.kind == ActionKind::kWeightGrad) return options_.weight_share;
    return -forms_.change(action).at_end;
  }

  const BackwardForms& forms_;
  const VerifyOptions& options_;
  double held_ = 0.0;
};

Verdict passed(const Schedule& schedule, const Held& held, Rank rank, int position, double alive,
               double limit) {
  const auto& actions = schedule.ranks[as_index(rank)];
  const Action& action = actions[as_index(position)];
  Counterexample counterexample;
  counterexample.memory_limit = limit;
  counterexample.add({rank, position}, action, Role::kCulprit,
                     concat("holds ", alive, ", the limit is ", limit));
  std::string freed = "nothing frees one later";
  for (int i = position + 1; i < static_cast<int>(actions.size()); ++i) {
    const Action& later = actions[as_index(i)];
    if (!held.frees(later)) continue;
    freed = concat("the next to be freed is by ", to_string(later), " (position ", i, ")");
    counterexample.add({rank, i}, later, Role::kRelated, "frees the next");
    break;
  }
  return {Defect::kMemory,
          concat("rank ", rank, " holds activations of ", alive, " at ", to_string(action),
                 " (position ", position, "), its limit is ", limit, "; ", freed),
          std::move(counterexample)};
}

}  // namespace

void require_memory_options(const Schedule& schedule, const VerifyOptions& options) {
  if (!options.memory_limit.empty()) {
    require_one_or_each("memory_limit", options.memory_limit, schedule.num_ranks(), "num_ranks");
  }
  require_one_or_each("activation_size", options.activation_size, schedule.num_stages(),
                      "num_stages");
  if (options.weight_share >= 0.0 && options.weight_share <= 1.0) return;
  throw ValueError(concat("weight_share must be from 0 to 1, got ", options.weight_share));
}

std::vector<double> memory_on(const Schedule& schedule, Rank rank, const VerifyOptions& options) {
  const BackwardForms forms(schedule);
  Held held(forms, options);
  std::vector<double> memory;
  for (const Action& action : schedule.ranks[as_index(rank)]) {
    memory.push_back(held.begin(action));
    held.end(action);
  }
  return memory;
}

Verdict check_memory(const Schedule& schedule, const VerifyOptions& options) {
  if (options.memory_limit.empty()) return {};
  const BackwardForms forms(schedule);
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const double limit = one_of(options.memory_limit, rank);
    const double rounding = 1e-9 * limit;  // sizes add up in any order
    Held held(forms, options);
    int position = 0;
    for (const Action& action : schedule.ranks[as_index(rank)]) {
      const double alive = held.begin(action);
      if (alive > limit + rounding) return passed(schedule, held, rank, position, alive, limit);
      held.end(action);
      ++position;
    }
  }
  return {};
}

}  // namespace pipert

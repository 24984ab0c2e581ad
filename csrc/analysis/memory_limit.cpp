#include "analysis/memory_limit.h"

#include <string_view>
#include <utility>

#include "analysis/activations.h"
#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

ActivationSize size_on(StageIndex stage, const VerifyOptions& options) {
  const double whole = one_of(options.activation_size, stage);
  return {.whole = whole, .after_input_half = whole * options.weight_share};
}

Activations activations_of(const Schedule& schedule, Rank rank) {
  Activations activations;
  for (const Action& action : schedule.ranks[as_index(rank)]) activations.expect(action);
  return activations;
}

// `activations`: after the action at `position`, while which `alive` of them passed the limit.
Verdict passed(const Schedule& schedule, const VerifyOptions& options, Activations activations,
               Rank rank, int position, double alive) {
  const double limit = one_of(options.memory_limit, rank);
  const auto& actions = schedule.ranks[as_index(rank)];
  const Action& action = actions[as_index(position)];
  Counterexample counterexample;
  counterexample.memory_limit = limit;
  counterexample.add({rank, position}, action, Role::kCulprit,
                     concat("holds ", alive, ", the limit is ", limit));
  std::string freed = "nothing frees one later";
  for (int i = position + 1; i < static_cast<int>(actions.size()); ++i) {
    const Action& later = actions[as_index(i)];
    const double during = activations.run(later, size_on(later.stage, options));
    if (activations.alive() >= during) continue;
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
  Activations activations = activations_of(schedule, rank);
  std::vector<double> memory;
  for (const Action& action : schedule.ranks[as_index(rank)]) {
    memory.push_back(activations.run(action, size_on(action.stage, options)));
  }
  return memory;
}

Verdict check_memory(const Schedule& schedule, const VerifyOptions& options) {
  if (options.memory_limit.empty()) return {};
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const double limit = one_of(options.memory_limit, rank);
    const double rounding = 1e-9 * limit;  // sizes add up in any order
    Activations activations = activations_of(schedule, rank);
    int position = 0;
    for (const Action& action : schedule.ranks[as_index(rank)]) {
      const double alive = activations.run(action, size_on(action.stage, options));
      if (alive > limit + rounding) {
        return passed(schedule, options, std::move(activations), rank, position, alive);
      }
      ++position;
    }
  }
  return {};
}

}  // namespace pipert

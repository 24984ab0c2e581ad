#include "analysis/memory_limit.h"

#include <cmath>
#include <string_view>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

void require_values(std::string_view name, const std::vector<double>& values, int size,
                    std::string_view of_what) {
  for (const double value : values) {
    if (!std::isfinite(value) || value < 0.0)
      throw ValueError(concat(name, " must be finite and at least 0, got ", value));
  }
  if (values.size() == 1 || values.size() == as_index(size)) return;
  throw ValueError(
      concat(name, " must be one number or ", size, " (", of_what, "), got ", values.size()));
}

double at(const std::vector<double>& values, std::int32_t index) {
  return values.size() == 1 ? values.front() : values[as_index(index)];
}

// What frees the activation that `action` made; nothing else of the same stage and microbatch comes
// after it.
bool frees_activation(ActionKind kind) {
  return kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad;
}

Verdict passed(const Schedule& schedule, Rank rank, int position, double alive, double limit) {
  const auto& actions = schedule.ranks[as_index(rank)];
  const Action& action = actions[as_index(position)];
  std::string freed = "nothing frees one later";
  for (int i = position + 1; i < static_cast<int>(actions.size()); ++i) {
    const Action& later = actions[as_index(i)];
    if (!frees_activation(later.kind)) continue;
    freed = concat("the next to be freed is by ", to_string(later), " (position ", i, ")");
    break;
  }
  return {Defect::kMemory,
          concat("rank ", rank, " holds activations of ", alive, " at ", to_string(action),
                 " (position ", position, "), its limit is ", limit, "; ", freed)};
}

}  // namespace

void require_memory_options(const Schedule& schedule, const VerifyOptions& options) {
  if (!options.memory_limit.empty()) {
    require_values("memory_limit", options.memory_limit, schedule.num_ranks(), "num_ranks");
  }
  require_values("activation_size", options.activation_size, schedule.num_stages(), "num_stages");
}

Verdict check_memory(const Schedule& schedule, const VerifyOptions& options) {
  if (options.memory_limit.empty()) return {};
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const double limit = at(options.memory_limit, rank);
    const double rounding = 1e-9 * limit;  // sizes add up in any order
    double alive = 0.0;
    int position = 0;
    for (const Action& action : schedule.ranks[as_index(rank)]) {
      const double size = at(options.activation_size, action.stage);
      if (action.kind == ActionKind::kForward) {
        alive += size;
        if (alive > limit + rounding) return passed(schedule, rank, position, alive, limit);
        if (options.forward_only) alive -= size;  // nobody comes back for it
      }
      if (frees_activation(action.kind)) alive -= size;
      ++position;
    }
  }
  return {};
}

}  // namespace pipert

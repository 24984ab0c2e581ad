#include "analysis/memory.h"

#include <algorithm>
#include <cmath>

#include "analysis/activations.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

const Action& action_of(const Action& action) { return action; }
const Action& action_of(const Span& span) { return span.action; }

// held_at(i): what is there besides while the i-th action runs.
template <typename Actions, typename SizeOf, typename HeldAt>
double peak_of(const Actions& actions, SizeOf size_of, HeldAt held_at) {
  Activations activations;
  for (const auto& each : actions) activations.expect(action_of(each));
  double peak = 0.0;
  for (std::size_t i = 0; i < actions.size(); ++i) {
    const Action& action = action_of(actions[i]);
    peak = std::max(peak, activations.run(action, size_of(action.stage)) + held_at(i));
  }
  return peak;
}

template <typename Actions>
int peak_count(const Actions& actions) {
  return static_cast<int>(std::lround(peak_of(
      actions, [](StageIndex) { return ActivationSize{}; }, [](std::size_t) { return 0.0; })));
}

// Of all that a stage reads, for a whole microbatch.
double input_bytes(const Costs& costs, const Placement& placement, StageIndex stage) {
  if (placement.is_first(stage)) return 0.0;
  double bytes = one_of(costs.bytes, stage - 1);
  const StageIndex own = stage % placement.stages_per_copy();
  for (const SkipCost& skip : costs.skips) {
    const bool reads =
        skip.from < own && std::find(skip.to.begin(), skip.to.end(), own) != skip.to.end();
    if (reads) bytes += skip.bytes;
  }
  return bytes;
}

}  // namespace

int peak_activations(const std::vector<Action>& actions) { return peak_count(actions); }
int peak_activations(const std::vector<Span>& spans) { return peak_count(spans); }

std::vector<double> peak_bytes(const Schedule& schedule, const Costs& costs,
                               const HeldBytes& held) {
  std::vector<double> peaks;
  if (costs.activation_bytes.empty()) return peaks;
  const auto size_of = [&](StageIndex stage) {
    const double whole = one_of(costs.activation_bytes, stage) / schedule.num_slices;
    return ActivationSize{
        .whole = whole,
        .after_input_half = whole * one_of(costs.weight_share, stage),
        .input = input_bytes(costs, schedule.placement, stage) / schedule.num_slices};
  };
  for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
    peaks.push_back(peak_of(schedule.ranks[rank], size_of,
                            [&](std::size_t i) { return held.empty() ? 0.0 : held[rank][i]; }));
  }
  return peaks;
}

}  // namespace pipert

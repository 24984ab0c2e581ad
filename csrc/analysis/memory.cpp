#include "analysis/memory.h"

#include <algorithm>
#include <cmath>

#include "analysis/activations.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

const Action& action_of(const Action& action) { return action; }
const Action& action_of(const Span& span) { return span.action; }

template <typename Actions, typename SizeOf>
double peak_of(const Actions& actions, SizeOf size_of) {
  Activations activations;
  for (const auto& each : actions) activations.expect(action_of(each));
  double peak = 0.0;
  for (const auto& each : actions) {
    const Action& action = action_of(each);
    peak = std::max(peak, activations.run(action, size_of(action.stage)));
  }
  return peak;
}

template <typename Actions>
int peak_count(const Actions& actions) {
  return static_cast<int>(
      std::lround(peak_of(actions, [](StageIndex) { return ActivationSize{}; })));
}

}  // namespace

int peak_activations(const std::vector<Action>& actions) { return peak_count(actions); }
int peak_activations(const std::vector<Span>& spans) { return peak_count(spans); }

std::vector<double> peak_bytes(const Schedule& schedule, const Costs& costs) {
  std::vector<double> peaks;
  if (costs.activation_bytes.empty()) return peaks;
  const auto size_of = [&](StageIndex stage) {
    const double whole = one_of(costs.activation_bytes, stage) / schedule.num_slices;
    const bool is_first = schedule.placement.is_first(stage);
    return ActivationSize{
        .whole = whole,
        .after_input_half = whole * one_of(costs.weight_share, stage),
        .input = is_first ? 0.0 : one_of(costs.bytes, stage - 1) / schedule.num_slices};
  };
  for (const auto& actions : schedule.ranks) peaks.push_back(peak_of(actions, size_of));
  return peaks;
}

}  // namespace pipert

#include "analysis/resolve_costs.h"

#include <cmath>
#include <string_view>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

void require_cost(std::string_view name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError(concat(name, " must be finite and at least 0, got ", value));
}

std::vector<double> of_stages(std::string_view name, const std::vector<double>& values,
                              int num_stages) {
  for (const double value : values) require_cost(name, value);
  if (values.size() == 1) return std::vector<double>(as_index(num_stages), values.front());
  if (values.size() == as_index(num_stages)) return values;
  throw ValueError(
      concat(name, " must be one number or ", num_stages, " (num_stages), got ", values.size()));
}

}  // namespace

StageTimes resolve_costs(const Costs& costs, const Placement& placement) {
  const int num_stages = placement.num_stages();
  const auto bytes = of_stages("bytes", costs.bytes, num_stages);
  require_cost("latency", costs.latency);
  require_cost("bandwidth", costs.bandwidth);
  StageTimes times{.forward = of_stages("forward", costs.forward, num_stages),
                   .input = of_stages("input", costs.input, num_stages),
                   .weight = of_stages("weight", costs.weight, num_stages),
                   .activation = std::vector<double>(as_index(num_stages), 0.0),
                   .gradient = std::vector<double>(as_index(num_stages), 0.0)};
  for (StageIndex stage = 0; stage + 1 < num_stages; ++stage) {
    if (placement.rank_of(stage) == placement.rank_of(stage + 1)) continue;
    const std::size_t s = as_index(stage);
    const double transfer =
        costs.latency + (costs.bandwidth > 0.0 ? bytes[s] / costs.bandwidth : 0.0);
    times.activation[s + 1] = transfer;
    times.gradient[s] = transfer;
  }
  return times;
}

}  // namespace pipert

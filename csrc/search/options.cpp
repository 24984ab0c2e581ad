#include "search/options.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

constexpr double kUnits = 1e6;  // that the longest time is made of
constexpr double kRounding = 1e-9;

bool takes(const Generator& generator, std::string_view name) {
  return std::find(generator.options.begin(), generator.options.end(), name) !=
         generator.options.end();
}

void require_numbers(std::string_view name, const std::vector<double>& values) {
  if (values.empty()) throw ValueError(concat(name, " must be at least one number, got none"));
  for (const double value : values) require_number(name, value);
}

void require_request(const Costs& costs, const MemoryCap& cap) {
  require_numbers("forward", costs.forward);
  require_numbers("input", costs.input);
  require_numbers("weight", costs.weight);
  require_number("latency", costs.latency.standard);
  if (!cap.limit.empty()) require_numbers("memory_limit", cap.limit);
  require_numbers("activation_size", cap.activation_size);
  if (!(cap.weight_share >= 0.0 && cap.weight_share <= 1.0))
    throw ValueError(concat("weight_share must be from 0 to 1, got ", cap.weight_share));
}

double largest(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

// The mean of times as a whole number, of which the longest of all has kUnits.
std::int64_t whole(const std::vector<double>& times, double longest) {
  const auto size = static_cast<double>(times.size());
  if (!(longest > 0.0)) return 1;
  const double mean = std::accumulate(times.begin(), times.end(), 0.0,
                                      [&](double sum, double time) { return sum + time / size; });
  return std::llround(mean / longest * kUnits);
}

// At least 1, which every schedule needs.
std::int64_t activations_within(const MemoryCap& cap) {
  double activations = std::numeric_limits<std::int32_t>::max();
  const double size = largest(cap.activation_size);
  if (!cap.limit.empty() && size > 0.0) {
    const double limit = *std::min_element(cap.limit.begin(), cap.limit.end());
    activations = std::min(activations, std::floor(limit / size * (1.0 + kRounding)));
  }
  return std::max<std::int64_t>(1, std::llround(activations));
}

}  // namespace

std::map<std::string, std::int64_t> options_for(const Generator& generator, const Costs& costs,
                                                const MemoryCap& cap) {
  require_request(costs, cap);
  if (!takes(generator, "memory_limit") || !takes(generator, "forward")) return {};
  const double longest = std::max({largest(costs.forward), largest(costs.input),
                                   largest(costs.weight), costs.latency.standard});
  return {{"forward", whole(costs.forward, longest)},
          {"input", whole(costs.input, longest)},
          {"weight", whole(costs.weight, longest)},
          {"latency", whole({costs.latency.standard}, longest)},
          {"weight_percent",
           static_cast<std::int64_t>(std::ceil(100.0 * cap.weight_share - kRounding))},
          {"memory_limit", activations_within(cap)}};
}

}  // namespace pipert

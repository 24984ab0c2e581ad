#include "search/layers.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>

#include "base/index.h"

namespace pipert {
namespace {

// By stage, what its last layer has.
std::vector<double> of_last_layers(const std::vector<double>& layers, const Cuts& cuts) {
  if (layers.size() <= 1) return layers;
  std::vector<double> stages;
  std::size_t end = 0;
  for (const int num_layers : cuts) {
    end += as_index(num_layers);
    stages.push_back(layers[end - 1]);
  }
  return stages;
}

}  // namespace

std::vector<double> stage_sums(const std::vector<double>& layers, const Cuts& cuts) {
  if (layers.empty()) return {};
  std::vector<double> sums;
  std::size_t begin = 0;
  for (const int num_layers : cuts) {
    const std::size_t end = begin + as_index(num_layers);
    double sum = num_layers * layers.front();
    if (layers.size() > 1) {
      const auto at = [&](std::size_t i) {
        return layers.begin() + static_cast<std::ptrdiff_t>(i);
      };
      sum = std::accumulate(at(begin), at(end), 0.0);
    }
    sums.push_back(sum);
    begin = end;
  }
  return sums;
}

Costs stage_costs(const Costs& layers, const Cuts& cuts) {
  Costs stages = layers;
  for (auto cost : {&Costs::forward, &Costs::input, &Costs::weight, &Costs::recompute,
                    &Costs::update, &Costs::reduce, &Costs::unshard, &Costs::reshard,
                    &Costs::offload, &Costs::reload, &Costs::activation_bytes}) {
    stages.*cost = stage_sums(layers.*cost, cuts);
  }
  stages.bytes = of_last_layers(layers.bytes, cuts);
  stages.gradient_bytes = of_last_layers(layers.gradient_bytes, cuts);
  return stages;
}

Cuts even_cuts(int num_layers, int num_stages) {
  Cuts cuts(as_index(num_stages), num_layers / num_stages);
  for (int i = 0; i < num_layers % num_stages; ++i) ++cuts[as_index(i)];
  return cuts;
}

Cuts balanced_cuts(const std::vector<double>& work, int num_stages) {
  const std::size_t num_layers = work.size();
  std::vector<double> before(num_layers + 1, 0.0);  // the work of the first i layers
  std::partial_sum(work.begin(), work.end(), before.begin() + 1);
  // longest[i]: of the first i layers cut into the stages so far; came_from[stage][i]: where the
  // last of these stages begins.
  std::vector<double> longest = before;
  std::vector<std::vector<std::size_t>> came_from = {std::vector<std::size_t>(num_layers + 1, 0)};
  for (std::size_t stage = 1; stage < as_index(num_stages); ++stage) {
    std::vector<double> next(num_layers + 1, std::numeric_limits<double>::infinity());
    auto& begins = came_from.emplace_back(num_layers + 1, 0);
    for (std::size_t end = stage + 1; end <= num_layers; ++end) {
      for (std::size_t begin = stage; begin < end; ++begin) {
        const double value = std::max(longest[begin], before[end] - before[begin]);
        if (value >= next[end]) continue;
        next[end] = value;
        begins[end] = begin;
      }
    }
    longest = std::move(next);
  }
  Cuts cuts(as_index(num_stages));
  std::size_t end = num_layers;
  for (std::size_t stage = as_index(num_stages); stage-- > 0;) {
    const std::size_t begin = came_from[stage][end];
    cuts[stage] = static_cast<int>(end - begin);
    end = begin;
  }
  return cuts;
}

Cuts with_layer_moved(Cuts cuts, int from, int to) {
  if (cuts[as_index(from)] <= 1) return {};
  --cuts[as_index(from)];
  ++cuts[as_index(to)];
  return cuts;
}

}  // namespace pipert

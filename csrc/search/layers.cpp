#include "search/layers.h"

#include <algorithm>
#include <cstddef>
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

Cuts with_layer_moved(Cuts cuts, int from, int to) {
  if (cuts[as_index(from)] <= 1) return {};
  --cuts[as_index(from)];
  ++cuts[as_index(to)];
  return cuts;
}

}  // namespace pipert

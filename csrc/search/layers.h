// layers: a model as a row of layers, and what stages made of neighbouring layers take.
#pragma once

#include <vector>

#include "analysis/simulate.h"

namespace pipert {

// How many layers each stage has, in order: a partition of the model.
using Cuts = std::vector<int>;

// The costs of `layers` put together to stages: times and activations are sums, a message is that
// of the stage's last layer. REQUIRES at least one layer in each stage, costs of as many layers in
// all, or one for all of them, and one weight_share.
Costs stage_costs(const Costs& layers, const Cuts& cuts);

// By stage, the sum of `layers`, which has one entry, or one for each layer.
std::vector<double> stage_sums(const std::vector<double>& layers, const Cuts& cuts);

// Stages of equally many layers; where they don't divide, the first ones have one more.
Cuts even_cuts(int num_layers, int num_stages);

// One layer moved from stage `from` to stage `to`: those between pass one on. Empty if `from` has
// no layer to spare.
Cuts with_layer_moved(Cuts cuts, int from, int to);

}  // namespace pipert

// Costs: what the actions and messages of a schedule take, for simulate(). A plain value.
#pragma once

#include <map>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "ir/schedule.h"
#include "ir/stage_graph.h"

namespace pipert {

// One number for all edges but those that have their own.
struct EdgeCost {
  double standard = 0.0;
  std::map<Edge, double> own = {};

  EdgeCost(double value = 0.0) : standard(value) {}  // NOLINT: a number is the usual case
  EdgeCost(double value, std::map<Edge, double> of_edges)
      : standard(value), own(std::move(of_edges)) {}
  double at(Edge edge) const;
};

// What a stage hands to stages beyond the chain's messages: an activation if they come after it, a
// gradient if they come before it. It goes to each rank of `to` once, with whatever else goes there
// at the same time, and costs no message inside a rank.
struct SkipCost {
  StageIndex from = 0;
  std::vector<StageIndex> to;  // the nearest first; `from`'s neighbour may be among them
  double bytes = 0.0;          // of a whole microbatch
};

// Times in any one unit (the Python face uses seconds), of a whole microbatch. Each vector has one
// entry, or one for each stage; it may be empty where that is said.
struct Costs {
  std::vector<double> forward = {1.0};
  std::vector<double> input = {1.0};   // the I half of backward; B costs input + weight
  std::vector<double> weight = {1.0};  // the W half
  std::vector<double> recompute = {};  // of a forward that is run again; empty: as `forward`
  std::vector<double> update = {0.0};  // the optimizer's, of a stage
  std::vector<double> reduce = {0.0};  // of a stage's gradients over its replicas
  std::vector<double> unshard = {0.0};
  std::vector<double> reshard = {0.0};
  std::vector<double> offload = {0.0};  // of one activation, as long as the rank is held up by it
  std::vector<double> reload = {0.0};

  EdgeCost latency = {};    // of one message between ranks
  EdgeCost bandwidth = {};  // bytes for each unit of time; 0: infinite
  // Of what a stage hands to the next alone.
  std::vector<double> bytes = {0.0};
  std::vector<double> gradient_bytes = {};  // of what comes back for it; empty: as bytes
  std::vector<SkipCost> skips = {};         // in each copy of the model; beside `bytes`
  // Edges whose messages share one link; an edge that is in none has a link of its own.
  std::vector<std::vector<Edge>> links = {};
  bool blocking = false;  // Note [Transfers that block] in simulate.h

  // What one activation takes on its rank; empty: not known.
  std::vector<double> activation_bytes = {};
  // What of it stays from I to W, from 0 to 1.
  std::vector<double> weight_share = {1.0};
};

// Throws ValueError for values that are not finite and at least 0, and for costs that are neither
// one for all nor one for each of `size` stages, or layers, as `what` says.
void require_times(const Costs& costs, int size, std::string_view what);

// Throws ValueError for costs that don't fit the schedule.
void require_costs(const Costs& costs, const Schedule& schedule);

// How long an action holds up its rank, transfers apart; 0 for an overlapped pair, a SEND, a RECV.
// Of a microbatch that is cut into `num_slices` each slice takes as much of it as the others.
double duration_of(const Action& action, const Costs& costs, int num_slices);

// Of what the chain's message of `kind` carries out of a stage, for a whole microbatch.
double chain_bytes(MessageKind kind, StageIndex stage, const Costs& costs);

// The pairs of stages that skips make, without those of the chain.
StageGraph stage_graph(const Costs& costs);

}  // namespace pipert

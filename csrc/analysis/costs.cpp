#include "analysis/costs.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

void require_edge(std::string_view name, const Edge& edge, int num_ranks) {
  const auto known = [num_ranks](Rank rank) { return rank >= 0 && rank < num_ranks; };
  if (known(edge.source) && known(edge.destination) && edge.source != edge.destination) return;
  throw ValueError(concat(name, ": an edge must lead from a rank to another, each from 0 to ",
                          num_ranks - 1, ", got (", edge.source, ", ", edge.destination, ")"));
}

void require_edge_costs(std::string_view name, const EdgeCost& costs, int num_ranks) {
  require_number(name, costs.standard);
  for (const auto& [edge, value] : costs.own) {
    require_edge(name, edge, num_ranks);
    require_number(concat(name, " of edge (", edge.source, ", ", edge.destination, ")"), value);
  }
}

void require_links(const std::vector<std::vector<Edge>>& links, int num_ranks) {
  std::set<Edge> seen;
  for (const auto& link : links) {
    for (const Edge& edge : link) {
      require_edge("links", edge, num_ranks);
      if (seen.insert(edge).second) continue;
      throw ValueError(concat("links: an edge must be on one link, once, got (", edge.source, ", ",
                              edge.destination, ") twice"));
    }
  }
}

// `to` on one side of `from`, the nearest first.
bool is_in_order(const SkipCost& skip, int num_stages) {
  const auto distance = [&](StageIndex stage) { return std::abs(stage - skip.from); };
  const bool down = !skip.to.empty() && skip.to.front() > skip.from;
  int before = 0;
  for (const StageIndex stage : skip.to) {
    const bool is_there = stage >= 0 && stage < num_stages && (stage > skip.from) == down;
    if (!is_there || distance(stage) <= before) return false;
    before = distance(stage);
  }
  return !skip.to.empty() && skip.from >= 0 && skip.from < num_stages;
}

void require_skips(const std::vector<SkipCost>& skips, int num_stages) {
  for (const auto& [from, to, bytes] : skips) {
    require_number("bytes of a skip", bytes);
    if (is_in_order({from, to, bytes}, num_stages)) continue;
    std::string text;
    for (const StageIndex stage : to) text += concat(text.empty() ? "" : ", ", stage);
    throw ValueError(concat("skips: expected a stage from 0 to ", num_stages - 1,
                            " and others, all behind or all before it, the nearest first, got ",
                            from, " and [", text, "]"));
  }
}

}  // namespace

double EdgeCost::at(Edge edge) const {
  const auto found = own.find(edge);
  return found == own.end() ? standard : found->second;
}

void require_times(const Costs& costs, int size, std::string_view what) {
  struct Row {
    std::string_view name;
    const std::vector<double>& values;
    bool may_be_empty = false;
  };
  for (const Row& row : {Row{"forward", costs.forward},
                         {"input", costs.input},
                         {"weight", costs.weight},
                         {"recompute", costs.recompute, true},
                         {"update", costs.update},
                         {"reduce", costs.reduce},
                         {"unshard", costs.unshard},
                         {"reshard", costs.reshard},
                         {"offload", costs.offload},
                         {"reload", costs.reload},
                         {"bytes", costs.bytes},
                         {"gradient_bytes", costs.gradient_bytes, true},
                         {"activation_bytes", costs.activation_bytes, true},
                         {"weight_share", costs.weight_share}}) {
    if (row.may_be_empty && row.values.empty()) continue;
    require_one_or_each(row.name, row.values, size, what);
  }
  if (!costs.skips.empty() && what != "num_stages")
    throw ValueError("skips are of stages, and these costs are of layers: expected none");
  for (const double share : costs.weight_share) {
    if (share > 1.0) throw ValueError(concat("weight_share must be at most 1, got ", share));
  }
}

void require_costs(const Costs& costs, const Schedule& schedule) {
  require_times(costs, schedule.num_stages(), "num_stages");
  require_edge_costs("latency", costs.latency, schedule.num_ranks());
  require_edge_costs("bandwidth", costs.bandwidth, schedule.num_ranks());
  require_links(costs.links, schedule.num_ranks());
  require_skips(costs.skips, schedule.placement.stages_per_copy());
}

double duration_of(const Action& action, const Costs& costs, int num_slices) {
  const StageIndex stage = action.stage;
  switch (action.kind) {
    case ActionKind::kForward:
      return one_of(costs.forward, stage) / num_slices;
    case ActionKind::kRecompute:
      return one_of(costs.recompute.empty() ? costs.forward : costs.recompute, stage) / num_slices;
    case ActionKind::kBackward:
      return (one_of(costs.input, stage) + one_of(costs.weight, stage)) / num_slices;
    case ActionKind::kInputGrad:
      return one_of(costs.input, stage) / num_slices;
    case ActionKind::kWeightGrad:
      return one_of(costs.weight, stage) / num_slices;
    case ActionKind::kOffload:
      return one_of(costs.offload, stage) / num_slices;
    case ActionKind::kReload:
      return one_of(costs.reload, stage) / num_slices;
    case ActionKind::kUnshard:
      return one_of(costs.unshard, stage);
    case ActionKind::kReshard:
      return one_of(costs.reshard, stage);
    case ActionKind::kReduceGrad:
      return one_of(costs.reduce, stage);
    case ActionKind::kUpdate:
      return one_of(costs.update, stage);
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kOverlap:
      return 0.0;
  }
  return 0.0;
}

double chain_bytes(MessageKind kind, StageIndex stage, const Costs& costs) {
  if (kind == MessageKind::kActivation) return one_of(costs.bytes, stage);
  return one_of(costs.gradient_bytes.empty() ? costs.bytes : costs.gradient_bytes, stage - 1);
}

StageGraph stage_graph(const Costs& costs) {
  std::vector<StagePair> activations;
  std::vector<StagePair> gradients;
  for (const auto& [from, to, bytes] : costs.skips) {
    for (const StageIndex stage : to) {
      if (stage > from + 1) activations.push_back({from, stage});
      if (stage < from - 1) gradients.push_back({from, stage});
    }
  }
  return make_stage_graph(std::move(activations), std::move(gradients));
}

}  // namespace pipert

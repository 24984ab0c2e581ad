#include "analysis/costs.h"

#include <cmath>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

enum class Emptiness { kForbidden, kAllowed };

void require_cost(std::string_view name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError(concat(name, " must be finite and at least 0, got ", value));
}

void require_stage_costs(std::string_view name, const std::vector<double>& values, int num_stages,
                         Emptiness emptiness = Emptiness::kForbidden) {
  for (const double value : values) require_cost(name, value);
  if (values.empty() && emptiness == Emptiness::kAllowed) return;
  if (values.size() == 1 || values.size() == as_index(num_stages)) return;
  throw ValueError(
      concat(name, " must be one number or ", num_stages, " (num_stages), got ", values.size()));
}

void require_edge(std::string_view name, const Edge& edge, int num_ranks) {
  const auto known = [num_ranks](Rank rank) { return rank >= 0 && rank < num_ranks; };
  if (known(edge.source) && known(edge.destination) && edge.source != edge.destination) return;
  throw ValueError(concat(name, ": an edge must lead from a rank to another, each from 0 to ",
                          num_ranks - 1, ", got (", edge.source, ", ", edge.destination, ")"));
}

void require_edge_costs(std::string_view name, const EdgeCost& costs, int num_ranks) {
  require_cost(name, costs.standard);
  for (const auto& [edge, value] : costs.own) {
    require_edge(name, edge, num_ranks);
    require_cost(concat(name, " of edge (", edge.source, ", ", edge.destination, ")"), value);
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

}  // namespace

double EdgeCost::at(Edge edge) const {
  const auto found = own.find(edge);
  return found == own.end() ? standard : found->second;
}

void require_costs(const Costs& costs, const Schedule& schedule) {
  const int num_stages = schedule.num_stages();
  require_stage_costs("forward", costs.forward, num_stages);
  require_stage_costs("input", costs.input, num_stages);
  require_stage_costs("weight", costs.weight, num_stages);
  require_stage_costs("recompute", costs.recompute, num_stages, Emptiness::kAllowed);
  require_stage_costs("update", costs.update, num_stages);
  require_stage_costs("reduce", costs.reduce, num_stages);
  require_stage_costs("unshard", costs.unshard, num_stages);
  require_stage_costs("reshard", costs.reshard, num_stages);
  require_stage_costs("offload", costs.offload, num_stages);
  require_stage_costs("reload", costs.reload, num_stages);
  require_stage_costs("bytes", costs.bytes, num_stages);
  require_stage_costs("gradient_bytes", costs.gradient_bytes, num_stages, Emptiness::kAllowed);
  require_stage_costs("activation_bytes", costs.activation_bytes, num_stages, Emptiness::kAllowed);
  require_stage_costs("weight_share", costs.weight_share, num_stages);
  for (const double share : costs.weight_share) {
    if (share > 1.0) throw ValueError(concat("weight_share must be at most 1, got ", share));
  }
  require_edge_costs("latency", costs.latency, schedule.num_ranks());
  require_edge_costs("bandwidth", costs.bandwidth, schedule.num_ranks());
  require_links(costs.links, schedule.num_ranks());
}

double of_stage(const std::vector<double>& values, StageIndex stage) {
  return values.size() == 1 ? values.front() : values[as_index(stage)];
}

double duration_of(const Action& action, const Costs& costs, int num_slices) {
  const StageIndex stage = action.stage;
  switch (action.kind) {
    case ActionKind::kForward:
      return of_stage(costs.forward, stage) / num_slices;
    case ActionKind::kRecompute:
      return of_stage(costs.recompute.empty() ? costs.forward : costs.recompute, stage) /
             num_slices;
    case ActionKind::kBackward:
      return (of_stage(costs.input, stage) + of_stage(costs.weight, stage)) / num_slices;
    case ActionKind::kInputGrad:
      return of_stage(costs.input, stage) / num_slices;
    case ActionKind::kWeightGrad:
      return of_stage(costs.weight, stage) / num_slices;
    case ActionKind::kOffload:
      return of_stage(costs.offload, stage) / num_slices;
    case ActionKind::kReload:
      return of_stage(costs.reload, stage) / num_slices;
    case ActionKind::kUnshard:
      return of_stage(costs.unshard, stage);
    case ActionKind::kReshard:
      return of_stage(costs.reshard, stage);
    case ActionKind::kReduceGrad:
      return of_stage(costs.reduce, stage);
    case ActionKind::kUpdate:
      return of_stage(costs.update, stage);
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kOverlap:
      return 0.0;
  }
  return 0.0;
}

double message_bytes(const Action& sender, const Costs& costs, int num_slices) {
  const bool activation =
      sender.kind == ActionKind::kForward || sender.kind == ActionKind::kSendForward;
  if (activation) return of_stage(costs.bytes, sender.stage) / num_slices;
  const auto& bytes = costs.gradient_bytes.empty() ? costs.bytes : costs.gradient_bytes;
  return of_stage(bytes, sender.stage - 1) / num_slices;
}

}  // namespace pipert

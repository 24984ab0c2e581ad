#include "analysis/resolve_costs.h"

#include "analysis/stage_messages.h"
#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

double transfer_time(const Costs& costs, Edge edge, double bytes) {
  const double bandwidth = costs.bandwidth.at(edge);
  return costs.latency.at(edge) + (bandwidth > 0.0 ? bytes / bandwidth : 0.0);
}

}  // namespace

StageTimes resolve_costs(const Costs& costs, const Placement& placement) {
  const int num_stages = placement.num_stages();
  Schedule frame;
  frame.placement = placement;
  frame.ranks.resize(as_index(placement.num_ranks()));
  require_costs(costs, frame);
  StageTimes times{.forward = spread(costs.forward, num_stages),
                   .input = spread(costs.input, num_stages),
                   .weight = spread(costs.weight, num_stages),
                   .activation = std::vector<double>(as_index(num_stages), 0.0),
                   .gradient = std::vector<double>(as_index(num_stages), 0.0)};
  const StageMessages messages(costs, placement);
  for (StageIndex stage = 0; stage + 1 < num_stages; ++stage) {
    const Edge edge{placement.rank_of(stage), placement.rank_of(stage + 1)};
    if (edge.source == edge.destination || placement.is_last(stage)) continue;
    const std::size_t s = as_index(stage);
    times.activation[s + 1] = transfer_time(
        costs, edge, messages.bytes(MessageKind::kActivation, stage, edge.destination));
    times.gradient[s] =
        transfer_time(costs, {edge.destination, edge.source},
                      messages.bytes(MessageKind::kGradient, stage + 1, edge.source));
  }
  return times;
}

}  // namespace pipert

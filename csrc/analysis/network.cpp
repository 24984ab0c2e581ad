#include "analysis/network.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {
namespace {

Transmission unqueued(const Parcel& parcel, double takes) {
  return {.begun = parcel.ready,
          .arrived = parcel.ready + takes,
          .ahead = {},
          .ahead_to = -1,
          .cause = parcel.cause};
}

}  // namespace

Network::Network(const Costs& costs, int num_ranks)
    : costs_(costs),
      is_uniform_(costs.latency.own.empty() && costs.bandwidth.own.empty() &&
                  !(costs.bandwidth.standard > 0.0)),
      links_(costs.links.size()),
      routes_(as_index(num_ranks)) {
  for (std::size_t link = 0; link < costs.links.size(); ++link) {
    const auto& edges = costs.links[link];
    for (const Edge& edge : edges) {
      shared_links_[edge] = static_cast<int>(link);
      const bool queues = costs.bandwidth.at(edge) > 0.0;
      is_shared_ = is_shared_ || (queues && edge.source != edges.front().source);
    }
  }
}

Transmission Network::send(const Parcel& parcel) {
  if (is_uniform_) {
    return unqueued(parcel, costs_.latency.standard);
  }
  const Route& route = route_of(parcel.edge);
  if (!(route.bandwidth > 0.0)) {
    return unqueued(parcel, route.latency);
  }
  Link& link = links_[as_index(route.link)];
  Transmission result = unqueued(parcel, 0.0);
  if (link.free > parcel.ready) {
    result.begun = link.free;
    result.ahead = link.last;
    result.ahead_to = link.last_to;
    result.cause = link.cause;
  }
  const double through = result.begun + parcel.bytes / route.bandwidth;
  result.arrived = through + route.latency;
  link = {through, parcel.sender, parcel.edge.destination, result.cause};
  return result;
}

Network::Route& Network::route_of(Edge edge) {
  auto& routes = routes_[as_index(edge.source)];
  auto found = std::lower_bound(
      routes.begin(), routes.end(), edge.destination,
      [](const Route& route, Rank destination) { return route.destination < destination; });
  if (found == routes.end() || found->destination != edge.destination) {
    found = routes.insert(found, {edge.destination, costs_.latency.at(edge),
                                  costs_.bandwidth.at(edge), link_of(edge)});
  }
  return *found;
}

int Network::link_of(Edge edge) {
  const auto found = shared_links_.find(edge);
  if (found != shared_links_.end()) return found->second;
  links_.emplace_back();
  return static_cast<int>(links_.size()) - 1;
}

}  // namespace pipert

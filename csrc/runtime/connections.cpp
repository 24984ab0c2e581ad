#include "runtime/connections.h"

#include <utility>

#include "base/error.h"
#include "transport/compressed_channel.h"
#include "transport/local_channel.h"

namespace pipert {
namespace {

std::map<Edge, SlotKind> edges_of(const Program& program) {
  std::map<Edge, SlotKind> edges;
  for (const Slot& slot : program.slots) {
    if (slot.kind != SlotKind::kLocal) edges[slot.edge] = slot.kind;
  }
  return edges;
}

void compress_edges(RankResources& resources, kernels::Format format) {
  for (auto& [edge, sender] : resources.senders) sender = compress(std::move(sender), format);
  for (auto& [edge, receiver] : resources.receivers)
    receiver = decompress(std::move(receiver), format);
}

}  // namespace

void connect(std::vector<RankSpec>& ranks, ExternalChannels& external,
             const ChannelOptions& options) {
  std::map<Rank, RankSpec*> here;
  for (RankSpec& spec : ranks) here[spec.training.rank] = &spec;
  const auto external_end = [](auto& ends, const Edge& edge) {
    const auto found = ends.find(edge);
    if (found == ends.end())
      throw InternalError(concat("edge ", to_string(edge), " has no channel"));
    return std::move(found->second);
  };
  for (RankSpec& spec : ranks) {
    for (const auto& [edge, kind] : edges_of(spec.training)) {
      if (kind == SlotKind::kReceive) {
        if (!here.contains(edge.source)) {
          spec.resources.receivers[edge] = external_end(external.receivers, edge);
        }
        continue;
      }
      const auto peer = here.find(edge.destination);
      if (peer == here.end()) {
        spec.resources.senders[edge] = external_end(external.senders, edge);
        continue;
      }
      LocalChannel channel = make_local_channel(peer->second->device, options.spin_us);
      if (options.network != nullptr)
        delay(options.network, edge, channel.sender, channel.receiver);
      spec.resources.senders[edge] = std::move(channel.sender);
      peer->second->resources.receivers[edge] = std::move(channel.receiver);
    }
  }
  if (!options.compression.has_value()) return;
  for (RankSpec& spec : ranks) compress_edges(spec.resources, *options.compression);
}

}  // namespace pipert

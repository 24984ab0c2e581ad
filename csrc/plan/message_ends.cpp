#include "plan/message_ends.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace pipert {
namespace {

const MessageKey& sent(const Program& program, std::size_t i) {
  return std::get<Send>(program.instructions[i].op).message;
}
const MessageKey& received(const Program& program, std::size_t i) {
  return std::get<Recv>(program.instructions[i].op).message;
}

Finding lonely(const Program& program, std::size_t i, Rank other) {
  return find(Flaw::kMessage, program, {i},
              concat(name_of(program, i), ": rank ", other, " has no such transfer"));
}

// `sends` of `sender` against `recvs` of `receiver`.
MaybeFinding compare(const Program& sender, const std::vector<std::size_t>& sends,
                     const Program& receiver, const std::vector<std::size_t>& recvs) {
  const std::size_t both = std::min(sends.size(), recvs.size());
  for (std::size_t k = 0; k < both; ++k) {
    if (sent(sender, sends[k]) == received(receiver, recvs[k])) continue;
    Finding finding = find(Flaw::kMessage, sender, {sends[k]},
                           concat(name_of(sender, sends[k]), " meets ", name_of(receiver, recvs[k]),
                                  " of rank ", receiver.rank));
    finding.places.push_back(place_of(receiver, recvs[k]));
    return finding;
  }
  if (sends.size() > both) return lonely(sender, sends[both], receiver.rank);
  if (recvs.size() > both) return lonely(receiver, recvs[both], sender.rank);
  return std::nullopt;
}

}  // namespace

MessageEnds::MessageEnds(std::span<const Program> programs, std::span<const RankProof> proofs) {
  std::map<Edge, std::pair<End, End>> edges;  // the sender's, the receiver's
  for (const Program& program : programs) {
    auto& peers = peers_.emplace_back(program.lanes.size());
    for (std::size_t lane = 0; lane < peers.size(); ++lane) {
      if (proofs[as_index(program.rank)].transfers[lane].instructions.empty()) continue;
      const LaneSpec& spec = program.lanes[lane];
      auto& [sender, receiver] = edges[spec.edge];
      (spec.kind == LaneKind::kSend ? sender : receiver) = {program.rank, lane};
    }
  }
  const auto in_range = [&](Rank rank) { return rank >= 0 && as_index(rank) < programs.size(); };
  const auto instructions = [&](const End& end) {
    if (end.rank < 0) return std::vector<std::size_t>();
    return proofs[as_index(end.rank)].transfers[end.lane].instructions;
  };
  for (const auto& [edge, ends] : edges) {
    const auto& [sender, receiver] = ends;
    if (!in_range(edge.source) || !in_range(edge.destination)) {
      const End& here = sender.rank >= 0 ? sender : receiver;
      const Rank other = here.rank == edge.source ? edge.destination : edge.source;
      finding_ = lonely(programs[as_index(here.rank)], instructions(here).front(), other);
      return;
    }
    finding_ = compare(programs[as_index(edge.source)], instructions(sender),
                       programs[as_index(edge.destination)], instructions(receiver));
    if (finding_) return;
    peers_[as_index(sender.rank)][sender.lane] = receiver;
    peers_[as_index(receiver.rank)][receiver.lane] = sender;
  }
}

}  // namespace pipert

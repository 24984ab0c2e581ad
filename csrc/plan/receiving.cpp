#include "plan/receiving.h"

#include <algorithm>

namespace pipert {

Receiving::Receiving(const Dataflow& dataflow, Rank rank, int receive_slots,
                     ProgramBuilder& builder)
    : builder_(builder) {
  const int num_runs = static_cast<int>(dataflow.runs(rank).size());
  for (int position = 0; position < num_runs; ++position) {
    const auto reads = dataflow.reads_of({rank, position});
    for (const DeliveryId id : reads) {
      const Delivery& delivery = dataflow.delivery(id);
      if (!delivery.crosses()) continue;
      ++num_messages_;
      const auto entry =
          edges_.try_emplace(delivery.writer.rank, InEdge{.incoming = Incoming(receive_slots)})
              .first;
      entry->second.incoming.add(delivery.sequence, dataflow.message_of(delivery));
      if (!dataflow.begins_pair({rank, position})) continue;
      // The second half's message is there, too, before the first is taken out.
      const auto same = [&](DeliveryId other) {
        return dataflow.delivery(other).writer.rank == delivery.writer.rank;
      };
      entry->second.incoming.reserve(1 + static_cast<int>(std::ranges::count_if(reads, same)));
    }
  }
  for (auto& [source, edge] : edges_) {
    edge.lane = builder.add_lane(LaneKind::kReceive, {source, rank});
    edge.slots = builder.slots.add_group(SlotKind::kReceive, {source, rank});
  }
}

void Receiving::post() {
  for (auto& [source, edge] : edges_) post(edge);
}

void Receiving::post(Rank source) { post(edges_.at(source)); }

void Receiving::post(InEdge& edge) {
  Incoming& incoming = edge.incoming;
  while (incoming.can_post()) {
    const SlotId slot = builder_.slots.take(edge.slots);
    Instruction instruction{
        .op = Recv{}, .lane = edge.lane, .waits = {}, .mark = builder_.new_mark()};
    const int sequence = incoming.post(slot, instruction.mark);
    instruction.op = Recv{incoming.message(sequence), sequence, slot};
    const MarkId emptied = builder_.state(slot).emptied_by;
    if (emptied != kNoMark) instruction.waits.push_back(emptied);
    builder_.program.instructions.push_back(std::move(instruction));
  }
}

Incoming::Held Receiving::take(const Delivery& delivery) {
  return edges_.at(delivery.writer.rank).incoming.take(delivery.sequence);
}

void Receiving::empty(SlotId slot, MarkId mark) {
  builder_.state(slot).emptied_by = mark;
  builder_.slots.give_back(slot);
}

}  // namespace pipert

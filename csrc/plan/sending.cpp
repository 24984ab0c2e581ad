#include "plan/sending.h"

#include "base/index.h"

namespace pipert {

Sending::Sending(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                 std::optional<int> send_slots, ProgramBuilder& builder)
    : dataflow_(dataflow),
      rank_(rank),
      first_(dataflow.first_write({rank, 0})),
      end_(dataflow.first_write({rank, static_cast<int>(dataflow.runs(rank).size())})),
      send_slots_(send_slots),
      builder_(builder),
      sent_(as_index(end_ - first_)),
      first_release_(dataflow.runs(rank).size() + 1, kNoDelivery) {
  for (DeliveryId id = first_; id < end_; ++id) {
    const Delivery& delivery = dataflow.delivery(id);
    if (!delivery.crosses()) continue;
    ++num_messages_;
    const Rank destination = delivery.reader.rank;
    const auto [entry, is_new] = edges_.try_emplace(destination);
    if (!is_new) continue;
    entry->second.lane = builder.add_lane(LaneKind::kSend, {rank, destination});
    entry->second.slots = builder.slots.add_group(SlotKind::kSend, {rank, destination});
  }
  plan_releases(clocks);
}

// Those that are released after the same Run are so in the order in which they were sent.
void Sending::plan_releases(const Clocks& clocks) {
  for (DeliveryId id = end_; id-- > first_;) {
    const Delivery& delivery = dataflow_.delivery(id);
    if (!delivery.crosses()) continue;
    const int after = clocks.known_received(delivery.writer, delivery.reader);
    sent(id).next_release = std::exchange(first_release_[as_index(after)], id);
  }
}

SlotId Sending::take_slot(DeliveryId id, Instruction& run) {
  const SlotId slot = builder_.slots.take(edge_of(id).slots);
  sent(id).slot = slot;
  const std::ptrdiff_t early = std::exchange(builder_.state(slot).released_early, -1);
  if (early >= 0) {
    Instruction& release = builder_.program.instructions[static_cast<std::size_t>(early)];
    release.mark = builder_.new_mark();
    run.waits.push_back(release.mark);
  }
  return slot;
}

void Sending::send(int position, MarkId made) {
  DeliveryId id = dataflow_.first_write({rank_, position});
  for (const Delivery& delivery : dataflow_.writes_of({rank_, position})) {
    if (delivery.crosses()) send_one(id, made);
    ++id;
  }
}

void Sending::send_one(DeliveryId id, MarkId made) {
  const Delivery& delivery = dataflow_.delivery(id);
  OutEdge& edge = edge_of(id);
  if (send_slots_.has_value()) {
    if (edge.num_on_their_way >= *send_slots_) make_room(edge);
    edge.by_reader.emplace(delivery.reader.position, id);
  }
  ++edge.num_on_their_way;
  sent(id).sent = builder_.new_mark();
  builder_.program.instructions.push_back(
      {.op = Send{dataflow_.message_of(delivery), delivery.sequence, sent(id).slot},
       .lane = edge.lane,
       .waits = {made},
       .mark = sent(id).sent});
}

// Waits for the message that is read next, not for the one that was sent first: it was shown that
// the reader comes to it.
void Sending::make_room(OutEdge& edge) {
  while (sent(edge.by_reader.top().second).is_released) edge.by_reader.pop();
  const DeliveryId id = edge.by_reader.top().second;
  release_one(id);
  builder_.state(sent(id).slot).released_early =
      static_cast<std::ptrdiff_t>(builder_.program.instructions.size()) - 1;
}

void Sending::release(int after) {
  for (DeliveryId id = first_release_[as_index(after)]; id != kNoDelivery;
       id = sent(id).next_release) {
    if (!sent(id).is_released) release_one(id);
  }
}

void Sending::release_one(DeliveryId id) {
  const Delivery& delivery = dataflow_.delivery(id);
  OutEdge& edge = edge_of(id);
  builder_.program.instructions.push_back(
      {.op = Release{dataflow_.message_of(delivery), delivery.sequence, sent(id).slot},
       .lane = edge.lane,
       .waits = {sent(id).sent},
       .mark = kNoMark});
  builder_.slots.give_back(sent(id).slot);
  sent(id).is_released = true;
  --edge.num_on_their_way;
}

}  // namespace pipert

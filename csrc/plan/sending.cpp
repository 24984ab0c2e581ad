#include "plan/sending.h"

#include "base/index.h"

namespace pipert {

Sending::Sending(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                 std::optional<int> send_slots, ProgramBuilder& builder)
    : dataflow_(dataflow),
      rank_(rank),
      send_slots_(send_slots),
      builder_(builder),
      results_(dataflow.runs(rank).size()),
      first_release_(dataflow.runs(rank).size() + 1, kNoRun) {
  const int num_runs = static_cast<int>(results_.size());
  for (int position = 0; position < num_runs; ++position) {
    const Place consumer = dataflow.consumer_of({rank, position});
    if (!consumer.exists() || consumer.rank == rank) continue;
    ++num_messages_;
    const auto [entry, is_new] = edges_.try_emplace(consumer.rank);
    if (!is_new) continue;
    entry->second.lane = builder.add_lane(LaneKind::kSend, {rank, consumer.rank});
    entry->second.slots = builder.slots.add_group(SlotKind::kSend, {rank, consumer.rank});
  }
  plan_releases(clocks);
}

// Results that are released after the same Run are so in the order in which they were sent.
void Sending::plan_releases(const Clocks& clocks) {
  for (int position = static_cast<int>(results_.size()) - 1; position >= 0; --position) {
    const Place consumer = dataflow_.consumer_of({rank_, position});
    if (!consumer.exists() || consumer.rank == rank_) continue;
    int& first = first_release_[as_index(clocks.known_received({rank_, position}, consumer))];
    results_[as_index(position)].next_release = std::exchange(first, position);
  }
}

Sending::OutEdge& Sending::edge_of(int position) {
  return edges_.at(dataflow_.consumer_of({rank_, position}).rank);
}

SlotId Sending::take_slot(int position, Instruction& run) {
  const SlotId slot = builder_.slots.take(edge_of(position).slots);
  results_[as_index(position)].slot = slot;
  const std::ptrdiff_t early = std::exchange(builder_.state(slot).released_early, -1);
  if (early >= 0) {
    Instruction& release = builder_.program.instructions[static_cast<std::size_t>(early)];
    release.mark = builder_.new_mark();
    run.waits.push_back(release.mark);
  }
  return slot;
}

void Sending::send(int position, MarkId made) {
  OutEdge& edge = edge_of(position);
  if (send_slots_.has_value()) {
    if (edge.num_on_their_way >= *send_slots_) make_room(edge);
    edge.by_reader.emplace(dataflow_.consumer_of({rank_, position}).position, position);
  }
  ++edge.num_on_their_way;
  Result& result = results_[as_index(position)];
  result.sent = builder_.new_mark();
  builder_.program.instructions.push_back(
      {.op = Send{dataflow_.message_of({rank_, position}), dataflow_.sequence_of({rank_, position}),
                  result.slot},
       .lane = edge.lane,
       .waits = {made},
       .mark = result.sent});
}

// Waits for the message that is read next, not for the one that was sent first: verify() has shown
// that the reader comes to it.
void Sending::make_room(OutEdge& edge) {
  while (results_[as_index(edge.by_reader.top().second)].is_released) edge.by_reader.pop();
  const int position = edge.by_reader.top().second;
  release_result(position);
  builder_.state(results_[as_index(position)].slot).released_early =
      static_cast<std::ptrdiff_t>(builder_.program.instructions.size()) - 1;
}

void Sending::release(int after) {
  for (int position = first_release_[as_index(after)]; position != kNoRun;
       position = results_[as_index(position)].next_release) {
    if (!results_[as_index(position)].is_released) release_result(position);
  }
}

void Sending::release_result(int position) {
  Result& result = results_[as_index(position)];
  OutEdge& edge = edge_of(position);
  builder_.program.instructions.push_back(
      {.op = Release{dataflow_.message_of({rank_, position}),
                     dataflow_.sequence_of({rank_, position}), result.slot},
       .lane = edge.lane,
       .waits = {result.sent},
       .mark = kNoMark});
  builder_.slots.give_back(result.slot);
  result.is_released = true;
  --edge.num_on_their_way;
}

}  // namespace pipert

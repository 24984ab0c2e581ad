// Sending: the messages that leave one rank: their lanes, their slots, and when each slot is free
// again.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "plan/clocks.h"
#include "plan/dataflow.h"
#include "plan/program_builder.h"

namespace pipert {

class Sending {
 public:
  // Adds the lanes. `send_slots`: see LowerOptions. `dataflow` and `builder` outlive this.
  Sending(const Dataflow& dataflow, const Clocks& clocks, Rank rank, std::optional<int> send_slots,
          ProgramBuilder& builder);

  std::size_t num_messages() const { return num_messages_; }

  // For a delivery that crosses, of what the instruction `run` makes; it waits for a Release that
  // may be waiting itself.
  SlotId take_slot(DeliveryId id, Instruction& run);
  // Sends what the `position`-th Run made, to all ranks that read it, once `made` is set.
  void send(int position, MarkId made);
  // What the other ranks are known to have after the `after`-th Run.
  void release(int after);

 private:
  // One edge that goes out.
  struct OutEdge {
    LaneId lane = 0;
    SlotPool::Group slots = 0;
    int num_on_their_way = 0;  // sent, not released
    // What was sent, by the Run that reads it; those that were released come out at the top. Only
    // kept where Sends may have to wait.
    using ByReader = std::pair<int, DeliveryId>;  // the reader's position first
    std::priority_queue<ByReader, std::vector<ByReader>, std::greater<>> by_reader;
  };

  // A message until its reader has it.
  struct Sent {
    SlotId slot = 0;
    MarkId sent = kNoMark;
    bool is_released = false;
    DeliveryId next_release = kNoDelivery;  // that is released after the same Run, behind this one
  };

  Sent& sent(DeliveryId id) { return sent_[as_index(id - first_)]; }
  OutEdge& edge_of(DeliveryId id) { return edges_.at(dataflow_.delivery(id).reader.rank); }
  void plan_releases(const Clocks& clocks);
  void send_one(DeliveryId id, MarkId made);
  void make_room(OutEdge& edge);
  void release_one(DeliveryId id);

  const Dataflow& dataflow_;
  Rank rank_;
  DeliveryId first_;  // what the rank makes: from here
  DeliveryId end_;
  std::optional<int> send_slots_;
  ProgramBuilder& builder_;
  std::map<Rank, OutEdge> edges_;          // by destination
  std::vector<Sent> sent_;                 // by delivery, from first_ on
  std::vector<DeliveryId> first_release_;  // by Run, and for the end: the first released after it
  std::size_t num_messages_ = 0;
};

}  // namespace pipert

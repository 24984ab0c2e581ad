// Incoming: the messages that come in over one edge, and the slots that hold them until they are
// read.
//
// Note [Receives follow the sender's order]
//
// An edge carries its messages in the order in which the sender makes them, which both ends know
// from the schedule. So no message needs a tag, and a channel that is a plain queue (NCCL, a ring
// in shared memory) will do. The receiver may read them in another order; it then needs more slots,
// since a message that is read late holds its slot while later ones come in.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "plan/dataflow.h"
#include "plan/program.h"

namespace pipert {

class Incoming {
 public:
  // `flows`: all that cross this edge, in any order. `slots`: at least 1, how many the caller would
  // like; where messages are read out of order, so many more are taken that receives are posted as
  // far ahead as they would be in order.
  Incoming(std::vector<Flow> flows, int slots);

  const Flow& flow(int sequence) const { return flows_[static_cast<std::size_t>(sequence)]; }
  int sequence_of(const Flow& flow) const {
    return sequence_of_.at({flow.producer, flow.consumer});
  }

  // Whether another receive can be posted now.
  bool can_post() const { return has_more() && slot_of_.size() < num_slots_; }
  bool has_more() const { return num_posted_ < flows_.size(); }

  // Posts the next message into `slot`; returns its sequence.
  int post(SlotId slot, MarkId arrival);

  struct Held {
    SlotId slot = 0;
    MarkId arrival = kNoMark;
  };
  // The message was read: its slot is free once the Run that sets `emptied` is done.
  Held take(int sequence);
  void set_emptied(SlotId slot, MarkId mark) { emptied_by_[slot] = mark; }
  // kNoMark for a slot that was never used.
  MarkId emptied_by(SlotId slot) const;

 private:
  std::vector<Flow> flows_;  // in the sender's order
  std::map<std::pair<RunId, RunId>, int> sequence_of_;
  std::size_t num_slots_ = 1;
  std::size_t num_posted_ = 0;
  std::map<int, Held> slot_of_;          // by sequence, while posted and not yet read
  std::map<SlotId, MarkId> emptied_by_;  // the Run that last emptied the slot
};

// The fewest slots with which every message is posted before the Run that reads it.
std::size_t slots_needed(const std::vector<Flow>& flows);

}  // namespace pipert

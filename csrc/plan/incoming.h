// Incoming: the messages that come in over one edge, and which of them hold a slot.
//
// Note [Receives follow the sender's order]
//
// An edge carries its messages in the order in which the sender makes them, which both ends know
// from the schedule. So no message needs a tag, and a channel that is a plain queue (NCCL, a ring
// in shared memory) will do. The receiver may read them in another order; it then needs more slots,
// since a message that is read late holds its slot while later ones come in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/index.h"
#include "plan/program.h"

namespace pipert {

class Incoming {
 public:
  // `slots`: at least 1, how many the caller would like; where messages are read out of order, so
  // many more are taken that receives are posted as far ahead as they would be in order.
  explicit Incoming(int slots) : slots_(slots) {}

  // The message that the rank reads next, the `sequence`-th that the sender makes. All messages are
  // added, in the order in which they are read, before the first is posted.
  void add(int sequence, const MessageKey& message);

  // At least so many slots, if messages are read at once.
  void reserve(int slots) { slots_ = std::max(slots_, slots); }

  std::size_t size() const { return messages_.size(); }
  const MessageKey& message(int sequence) const { return messages_[as_index(sequence)]; }

  // Whether another receive can be posted now.
  bool can_post() const { return has_more() && num_held_ - num_late_ < slots_; }
  bool has_more() const { return num_posted_ < static_cast<int>(messages_.size()); }

  // Posts the next message into `slot`; returns its sequence.
  int post(SlotId slot, MarkId arrival);

  struct Held {
    SlotId slot = 0;
    MarkId arrival = kNoMark;
  };
  // The message is read. REQUIRES that it is posted.
  Held take(int sequence);

 private:
  std::vector<MessageKey> messages_;  // by sequence
  std::vector<Held> held_;            // by sequence; as many as are posted
  int slots_ = 1;
  int num_late_ =
      0;  // most messages that are unread at a time and were sent before one that is read
  int num_added_ = 0;
  int num_posted_ = 0;
  int num_held_ = 0;  // posted and not yet read
};

}  // namespace pipert

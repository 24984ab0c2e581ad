#include "plan/incoming.h"

#include <algorithm>

namespace pipert {

// When `num_added_` messages have been read and this one is next, of the `sequence` before it at
// least the difference is unread, and each of those holds a slot.
void Incoming::add(int sequence, const MessageKey& message) {
  messages_.resize(std::max(messages_.size(), as_index(sequence) + 1));
  messages_[as_index(sequence)] = message;
  num_late_ = std::max(num_late_, sequence - num_added_);
  ++num_added_;
}

int Incoming::post(SlotId slot, MarkId arrival) {
  held_.push_back({slot, arrival});
  ++num_held_;
  return num_posted_++;
}

Incoming::Held Incoming::take(int sequence) {
  --num_held_;
  return held_[as_index(sequence)];
}

}  // namespace pipert

#include "plan/incoming.h"

#include <algorithm>
#include <utility>

namespace pipert {

std::size_t slots_needed(const std::vector<Flow>& flows) {
  std::vector<int> readers;
  readers.reserve(flows.size());
  for (const Flow& flow : flows) readers.push_back(flow.consumer.position);
  std::sort(readers.begin(), readers.end());
  std::size_t needed = 1;
  for (std::size_t i = 0; i < flows.size(); ++i) {
    const auto first = std::lower_bound(readers.begin(), readers.end(), flows[i].consumer.position);
    const auto read_before = static_cast<std::size_t>(first - readers.begin());
    if (i >= read_before) needed = std::max(needed, i - read_before + 1);
  }
  return needed;
}

Incoming::Incoming(std::vector<Flow> flows, int slots) : flows_(std::move(flows)) {
  std::stable_sort(flows_.begin(), flows_.end(), [](const Flow& a, const Flow& b) {
    return a.producer.position < b.producer.position;
  });
  for (const Flow& flow : flows_) {
    sequence_of_.emplace(std::pair(flow.producer, flow.consumer),
                         static_cast<int>(sequence_of_.size()));
  }
  num_slots_ = slots_needed(flows_) + static_cast<std::size_t>(slots) - 1;
}

int Incoming::post(SlotId slot, MarkId arrival) {
  const int sequence = static_cast<int>(num_posted_++);
  slot_of_[sequence] = {slot, arrival};
  return sequence;
}

Incoming::Held Incoming::take(int sequence) {
  const auto found = slot_of_.find(sequence);
  const Held held = found->second;
  slot_of_.erase(found);
  return held;
}

MarkId Incoming::emptied_by(SlotId slot) const {
  const auto found = emptied_by_.find(slot);
  return found == emptied_by_.end() ? kNoMark : found->second;
}

}  // namespace pipert

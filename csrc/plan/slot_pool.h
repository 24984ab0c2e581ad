// SlotPool: hands out the slots of one rank by liveness, the lowest free one first, as a register
// allocator would.
#pragma once

#include <cstddef>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "base/index.h"
#include "plan/program.h"

namespace pipert {

class SlotPool {
 public:
  // The slots of one kind and edge.
  using Group = std::size_t;

  // REQUIRES that there is no group of that kind and edge yet.
  Group add_group(SlotKind kind, const Edge& edge) {
    groups_.push_back({kind, edge, 0, {}});
    return groups_.size() - 1;
  }

  // A slot of this group that nobody holds; a new one if there is none.
  SlotId take(Group group) {
    auto& [kind, edge, count, free] = groups_[group];
    if (!free.empty()) {
      const SlotId slot = free.top();
      free.pop();
      return slot;
    }
    slots_.push_back({kind, edge, count++});
    group_of_.push_back(group);
    return static_cast<SlotId>(slots_.size()) - 1;
  }

  SlotKind kind(SlotId slot) const { return slots_[as_index(slot)].kind; }

  void give_back(SlotId slot) { groups_[group_of_[as_index(slot)]].free.push(slot); }

  // How many there are, of all groups.
  std::size_t size() const { return slots_.size(); }
  // What was handed out, indexed by SlotId.
  std::vector<Slot> slots() && { return std::move(slots_); }

 private:
  struct GroupState {
    SlotKind kind = SlotKind::kLocal;
    Edge edge;
    int count = 0;
    std::priority_queue<SlotId, std::vector<SlotId>, std::greater<>> free;
  };
  std::vector<GroupState> groups_;
  std::vector<Slot> slots_;
  std::vector<Group> group_of_;  // by SlotId
};

}  // namespace pipert

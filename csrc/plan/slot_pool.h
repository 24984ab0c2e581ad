// SlotPool: hands out the slots of one rank by liveness, the lowest free one first, as a register
// allocator would.
#pragma once

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "plan/program.h"

namespace pipert {

class SlotPool {
 public:
  // A slot of this kind and edge that nobody holds; a new one if there is none.
  SlotId take(SlotKind kind, const Edge& edge) {
    auto& free = free_[{kind, edge}];
    if (!free.empty()) {
      const SlotId slot = *free.begin();
      free.erase(free.begin());
      return slot;
    }
    slots_.push_back({kind, edge, counts_[{kind, edge}]++});
    return static_cast<SlotId>(slots_.size()) - 1;
  }

  void give_back(SlotId slot) {
    const Slot& spec = slots_[static_cast<std::size_t>(slot)];
    free_[{spec.kind, spec.edge}].insert(slot);
  }

  // What was handed out, indexed by SlotId.
  std::vector<Slot> slots() && { return std::move(slots_); }

 private:
  using Key = std::pair<SlotKind, Edge>;
  std::vector<Slot> slots_;
  std::map<Key, std::set<SlotId>> free_;
  std::map<Key, int> counts_;
};

}  // namespace pipert

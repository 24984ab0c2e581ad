// ProgramBuilder: a rank's Program while it is made: what those who add to it share.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "base/index.h"
#include "plan/program.h"
#include "plan/slot_pool.h"

namespace pipert {

struct SlotState {
  MarkId emptied_by = kNoMark;         // of a receive slot: the Run that emptied it last
  std::ptrdiff_t released_early = -1;  // of a send slot: the Release that may have had to wait
};

struct ProgramBuilder {
  Program program;
  SlotPool slots;
  std::vector<SlotState> slot_states;  // by SlotId

  MarkId new_mark() { return program.num_marks++; }

  LaneId add_lane(LaneKind kind, const Edge& edge) {
    program.lanes.push_back({kind, edge});
    return static_cast<LaneId>(program.lanes.size()) - 1;
  }

  SlotState& state(SlotId slot) {
    slot_states.resize(slots.size());
    return slot_states[as_index(slot)];
  }

  Program build() && {
    program.slots = std::move(slots).slots();
    return std::move(program);
  }
};

}  // namespace pipert

// Receiving: the messages that come to one rank: their lanes, their slots, and when each receive is
// posted.
#pragma once

#include <cstddef>
#include <map>

#include "plan/dataflow.h"
#include "plan/incoming.h"
#include "plan/program_builder.h"

namespace pipert {

class Receiving {
 public:
  // Adds the lanes. `receive_slots`: see LowerOptions. `builder` outlives this.
  Receiving(const Dataflow& dataflow, Rank rank, int receive_slots, ProgramBuilder& builder);

  std::size_t num_messages() const { return num_messages_; }

  // As far as there are slots: from all ranks, or from one.
  void post();
  void post(Rank source);

  // The slot that it came into, and the mark of its arrival: it is read.
  Incoming::Held take(const Delivery& delivery);
  // Whether more comes over the edge: who reads a message is then waited for.
  bool has_more(Rank source) const { return edges_.at(source).incoming.has_more(); }
  // What was read is out of its slot once `mark` is set.
  void empty(SlotId slot, MarkId mark);

 private:
  struct InEdge {
    Incoming incoming;
    LaneId lane = 0;
    SlotPool::Group slots = 0;
  };

  void post(InEdge& edge);

  ProgramBuilder& builder_;
  std::map<Rank, InEdge> edges_;  // by source
  std::size_t num_messages_ = 0;
};

}  // namespace pipert

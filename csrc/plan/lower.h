// lower: Schedule -> one Program for each rank.
//
// Adds the transfers, puts every instruction on a lane, gives each message a slot and connects the
// lanes with the marks that are needed, no more.
#pragma once

#include <optional>
#include <vector>

#include "ir/schedule.h"
#include "ir/stage_graph.h"
#include "plan/clocks.h"
#include "plan/dataflow.h"
#include "plan/program.h"

namespace pipert {

struct LowerOptions {
  // Receive slots of each edge whose messages are read in order; an edge whose messages aren't gets
  // as many more as hold those that are read late. With 1, a receive may be posted only just before
  // the Run that reads it.
  int receive_slots = 2;
  // At most so many messages of each edge are on their way: a further Send waits until the peer has
  // the one that it reads next. Without it no Send ever waits, and a message is kept until a later
  // Run shows that it was read; where nothing ever comes back (inference), that is to the end. Left
  // out for a schedule that could then not end.
  std::optional<int> send_slots = std::nullopt;
  // Whether the halves of an overlapped pair stay together (Program::joint_pairs): what both read
  // is there before either runs, and what they make is sent when both have. Else the forward runs
  // first, and sends. ValueError for a schedule whose ranks would then wait for each other.
  bool joint_pairs = false;
  // Who reads whose result beyond the chain of stages, in each copy of the model. ValueError for a
  // stage that isn't there.
  StageGraph stage_graph = {};
};

// A schedule that is ready to be lowered, one rank at a time: each process of a large pipeline
// needs its own Program alone. Holds what all ranks share, which is much smaller than their
// Programs. Immutable; any number of threads may lower ranks of it at once.
class Lowering {
 public:
  // REQUIRES a schedule that outlives this and that verify() accepts (ValueError otherwise: it
  // checks). O(actions) for a placement in which each rank exchanges messages with a few others
  // (clocks.h).
  explicit Lowering(const Schedule& schedule, const LowerOptions& options = {});
  explicit Lowering(Schedule&& schedule, const LowerOptions& options = {}) = delete;

  int num_ranks() const { return dataflow_.num_ranks(); }
  // Throws IndexError if there is no such rank. O(actions of the rank).
  Program program(Rank rank) const;

 private:
  const Schedule& schedule_;
  LowerOptions options_;
  Dataflow dataflow_;
  Clocks clocks_;
};

// All of them, in rank order. REQUIRES as Lowering.
std::vector<Program> lower(const Schedule& schedule, const LowerOptions& options = {});

}  // namespace pipert

// lower: Schedule -> one Program for each rank.
//
// Adds the transfers, puts every instruction on a lane, gives each message a slot and connects the
// lanes with the marks that are needed, no more.
#pragma once

#include <optional>
#include <vector>

#include "ir/schedule.h"
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
};

// REQUIRES a schedule that verify() accepts (ValueError otherwise: lower() checks).
// The result has one Program for each rank, in rank order.
std::vector<Program> lower(const Schedule& schedule, const LowerOptions& options = {});

}  // namespace pipert

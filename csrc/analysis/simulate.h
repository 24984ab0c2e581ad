// simulate: runs a schedule under given costs, on paper. Deterministic; O(actions), and a logarithm
// of the ranks more where they share links or transfers block.
//
// A rank does its actions one after another, each as soon as its inputs are there. A message
// between two ranks leaves when its sender is done (in a lowered schedule, at its SEND), waits for
// its link and travels over it (Note [Messages on a link]). Neither rank is held up meanwhile.
// Inside a rank it is there at once. An overlapped pair is its forward, then its backward.
//
// With `blocking` transfers ranks run as verify() takes them to under rendezvous: a rank that has
// done an action stands there until its reader has come to take the message, and both of them until
// it has arrived.
//
// Note [The end of a step]
//
// Reductions of gradients and optimizer updates are actions of a schedule like others. Most
// schedules have none, and leave them to whoever calls the step. If they cost something and the
// schedule has none of their kind, each rank does those of its stages after its last action: all
// reductions, then all updates. Ranks don't wait for each other between the two. A schedule of
// forwards alone ends as it is.
#pragma once

#include "analysis/costs.h"
#include "analysis/timeline.h"
#include "ir/schedule.h"

namespace pipert {

enum class Detail : std::uint8_t {
  kSpans,
  kMessages,  // Timeline::messages too: 48 bytes for each
};

// A schedule of forwards alone is taken as an inference schedule. Throws ValueError for costs that
// don't fit the schedule, and for a schedule that verify() rejects: under rendezvous if transfers
// are blocking.
Timeline simulate(const Schedule& schedule, const Costs& costs, Detail detail = Detail::kSpans);

}  // namespace pipert

// simulate: runs a schedule under given costs, on paper. Deterministic; O(actions), and a logarithm
// of the ranks more where they share links or transfers block.
//
// A rank does its actions one after another, each as soon as its inputs are there. A message
// between two ranks leaves when its sender is done (in a lowered schedule, at its SEND), waits for
// its link and travels over it (Note [Messages on a link]). Neither rank is held up meanwhile.
// Inside a rank it is there at once. An overlapped pair is its forward, then its backward.
//
// Note [Transfers that block]
//
// With `blocking` a rank does nothing while it sends or receives. Between two actions it posts the
// send of what the first made and the receive of what the second needs, both at once, as batched
// sends and receives of torch.distributed do, and goes on when both are through. A transfer begins
// when both of its ranks have come to it. A schedule of which ranks then wait for each other is bad
// under verify()'s rendezvous too, whose ranks receive only after they have sent; the reverse is
// not so: neighbours in 1F1B send to each other, which takes posting both.
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
  kMessages,  // Timeline::messages too: 56 bytes for each
};

// A schedule of forwards alone is taken as an inference schedule. Throws ValueError for costs that
// don't fit the schedule, and with the verdict's message for a schedule that verify() rejects; if
// transfers block and ranks wait for each other, with that under rendezvous.
Timeline simulate(const Schedule& schedule, const Costs& costs, Detail detail = Detail::kSpans);

}  // namespace pipert

// prove: shows that Programs are right, before they run, or names what isn't.
//
// What is shown, of all lanes and ranks at any speed (docs/prover.md):
//  - every two conflicting accesses to a slot, or to the activations of a microbatch on a stage,
//    are ordered by lanes and marks, on one rank or by way of others (lane_clocks.h,
//    known_arrivals.h);
//  - a slot is filled only when it is empty, and emptied by whoever needs what it holds
//    (slot_accesses.h, held_state.h);
//  - both ends of an edge name the same messages in the same order (message_ends.h);
//  - each mark is set once, and set before it is waited for (mark_use.h);
//  - no instructions wait for each other, with these slots and no other buffers (lane_waits.h).
#pragma once

#include <span>

#include "plan/program.h"
#include "plan/proof.h"

namespace pipert {

// Whether these are the Programs of all ranks of a pipeline, in rank order.
bool are_all_ranks(std::span<const Program> programs);

// `programs`: all ranks', in rank order; or any of them, each of which is then proved alone
// (Proof::is_whole). Names the first flaw: on each rank, then between ranks. ValueError for none,
// for Programs of pipelines of different numbers of ranks, and for a rank that is out of range or
// there twice. O(instructions x lanes of their rank); together, also O(messages x ranks) much
// smaller steps.
Proof prove(std::span<const Program> programs);

}  // namespace pipert

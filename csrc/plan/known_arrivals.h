// known_arrivals: whether a rank that fills a send slot again surely knows that the message before
// has arrived.
//
// Note [What comes back]
//
// A rank isn't told that a message of its own has arrived; what it receives tells. Each rank has a
// vector clock: of how many steps (rank_proof.h) of each rank it is sure, at the step that it is
// at, that they have begun. A message carries the clock of the step that it was sent after; a step
// that is sure of a message takes over its clock. If that covers the first step of the other rank
// that was sure of a message of mine, the message has arrived, and my slot may be filled.
//
// A step that has begun is all that counts across ranks, so what a transfer learns without any Run
// is left out: too little is known then, never too much. Clocks are those of all ranks, so this
// takes O(messages x ranks) small steps, and a row of memory for each message that is on its way.
// It needs no schedule, and none of what lower() thought: it checks Note [What a sender may
// conclude] of clocks.h.
#pragma once

#include <span>

#include "plan/finding.h"
#include "plan/message_ends.h"
#include "plan/program.h"
#include "plan/rank_proof.h"

namespace pipert {

// The first refill that may come too early. REQUIRES as find_deadlock(), and that there is none.
MaybeFinding find_early_refill(std::span<const Program> programs, std::span<const RankProof> proofs,
                               const MessageEnds& ends);

}  // namespace pipert

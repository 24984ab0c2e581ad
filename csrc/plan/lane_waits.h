// lane_waits: whether the lanes of all ranks come to their ends, or wait for each other.
//
// Note [How Programs are taken to wait]
//
// As little may be buffered and as much may block as an executor could choose:
//  - A rank issues its instructions in order, from one thread, which waits at each Run, Move and
//    Release until it is done.
//  - A lane does one instruction after the other, Releases aside, which wait for their marks.
//  - A Send is done when its Recv has been posted: no channel holds a message that no slot waits
//    for. A Recv is done when its Send has begun.
//  - A Release is done when the Run that reads its message has begun: a channel may take a message
//    in when it is read, and no earlier, as the one in shared memory does.
//  - The halves of a joint pair begin one after the other, each once what it waits for is there;
//  the
//    first ends only when the second has begun.
// Whether instructions wait for each other doesn't depend on the order in which lanes are taken up:
// each waits for all of a fixed set. So one walk over the lanes finds out. An executor that buffers
// more, or blocks less, waits for less.
#pragma once

#include <span>

#include "plan/finding.h"
#include "plan/message_ends.h"
#include "plan/program.h"
#include "plan/rank_proof.h"

namespace pipert {

// The shortest cycle of instructions that wait for each other, if some never end. REQUIRES `ends`
// without a finding, of these `programs` and `proofs`. O(instructions).
MaybeFinding find_deadlock(std::span<const Program> programs, std::span<const RankProof> proofs,
                           const MessageEnds& ends);

}  // namespace pipert

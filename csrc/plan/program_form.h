// program_form: whether a Program is one at all: what the rest of the prover takes for granted.
#pragma once

#include "plan/finding.h"
#include "plan/program.h"

namespace pipert {

// Counts are not negative and ids in range; the stages are those of whole copies, and the graph's
// are among them; lane 0 is the compute lane, and no other lane is there twice; each instruction is
// on a lane of its kind, a transfer with a slot of its edge; a Run reads receive and local slots,
// keeps in local ones, and writes send and local ones; a joint pair is a forward and a backward of
// which neither is in another pair. O(instructions).
MaybeFinding check_form(const Program& program);

}  // namespace pipert

// deadlock: whether ranks wait for each other when a schedule runs as verify.h's note says.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "analysis/collective_order.h"
#include "analysis/verify.h"

namespace pipert {

// By rank, then by position: whether a pair whose halves run jointly begins there.
using PairStarts = std::vector<std::vector<bool>>;

// kDeadlock with the shortest cycle of waiting ranks, or a good verdict. REQUIRES a complete
// schedule that is in order on each rank, overlapped pairs taken apart. `joint`: those that are run
// jointly all the same; empty: none.
Verdict check_deadlock(const Schedule& schedule, const PairStarts& joint, const ActionIndex& index,
                       const Collectives& collectives, const VerifyOptions& options);

}  // namespace pipert

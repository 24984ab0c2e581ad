// deadlock: whether ranks wait for each other when a schedule runs as verify.h's note says.
#pragma once

#include "analysis/action_index.h"
#include "analysis/collective_order.h"
#include "analysis/verify.h"

namespace pipert {

// kDeadlock with the shortest cycle of waiting ranks, or a good verdict. REQUIRES a complete
// schedule that is in order on each rank, overlapped pairs taken apart.
Verdict check_deadlock(const Schedule& schedule, const ActionIndex& index,
                       const Collectives& collectives, const VerifyOptions& options);

}  // namespace pipert

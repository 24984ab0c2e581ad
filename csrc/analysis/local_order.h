// local_order: whether each action comes after its inputs on its own rank.
#pragma once

#include "analysis/action_index.h"
#include "analysis/verify.h"

namespace pipert {

// kUnordered, or a good verdict. Inputs from other ranks are the deadlock check's business, but for
// a lowered schedule, where the RECV stands on the reader's rank. REQUIRES a complete schedule,
// overlapped pairs taken apart.
Verdict check_local_order(const Schedule& schedule, const ActionIndex& index);

// kUnordered or kDoubled: compute on a stage whose parameters are sharded at that moment (if the
// schedule unshards it at all), or a gradient that comes after its stage's REDUCE_GRAD. REQUIRES
// actions in range.
Verdict check_parameters(const Schedule& schedule);

}  // namespace pipert

// completeness: whether each microbatch passes each stage exactly once, there and back, with its
// transfers.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "analysis/verify.h"

namespace pipert {

// kMissing if the schedule has fewer forwards than stages x microbatches. It takes no memory for
// those that are not there, so it goes first: a CSV may name microbatch 900000000. REQUIRES actions
// in range.
Verdict check_num_forwards(const Schedule& schedule);

// By microbatch: the copy of the model that it passes (Note [Copies of the model]); of several,
// any. REQUIRES actions in range, overlapped pairs taken apart.
std::vector<int> copy_of_microbatches(const Schedule& schedule);

// kDoubled if an action comes twice. Fills `index`. REQUIRES actions in range.
Verdict check_doubled(const Schedule& schedule, ActionIndex& index);

// kMissing or kDoubled (a backward done both whole and in halves, a microbatch in two copies of the
// model). REQUIRES a filled index.
Verdict check_complete(const Schedule& schedule, const ActionIndex& index,
                       const VerifyOptions& options);

}  // namespace pipert

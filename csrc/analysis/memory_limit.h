// memory_limit: whether each rank's activations stay within what it has for them.
#pragma once

#include "analysis/verify.h"

namespace pipert {

// kMemory, at the first action that passes its rank's limit. An activation is alive as
// activations.h tells; of one whose B is split, only the options' weight_share after its I.
// REQUIRES a complete schedule, overlapped pairs taken apart.
Verdict check_memory(const Schedule& schedule, const VerifyOptions& options);

// By position: the activations alive during each action of the rank. REQUIRES as above.
std::vector<double> memory_on(const Schedule& schedule, Rank rank, const VerifyOptions& options);

// ValueError for limits or sizes that don't fit the schedule.
void require_memory_options(const Schedule& schedule, const VerifyOptions& options);

}  // namespace pipert

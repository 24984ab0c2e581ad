// weight_versions: whether each action of a schedule uses a version of the weights that is there
// (Note [Weight versions]), and how many versions a rank must keep.
#pragma once

#include <vector>

#include "analysis/verify.h"

namespace pipert {

// kVersion unless, on each stage: updates make the versions 1, 2, 3, ... in order, each from at
// least one backward; a forward uses a version that is made, the other actions of its microbatch
// the same one; and, in a schedule with updates, every gradient is in one. REQUIRES a complete and
// ordered schedule, overlapped pairs taken apart.
Verdict check_versions(const Schedule& schedule);

// By rank: the most versions of one of its stages' weights that it has to keep at once, the newest
// and those that a later action uses. 1 for a synchronous schedule. REQUIRES as above.
std::vector<int> peak_weight_versions(const Schedule& schedule);

}  // namespace pipert

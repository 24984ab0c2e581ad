// dualpipe_steps: the eight steps that a rank of DualPipe goes through (DeepSeek-AI 2024,
// arXiv:2412.19437, section 3.2.1).
//
// They are the same in the whole of DualPipe and in its V-shaped half: what comes back over the tip
// of the V in the one comes from the other copy of the model in the other.
#pragma once

#include <vector>

#include "ir/schedule.h"

namespace pipert {

// For rank `r` of a V of `p` ranks with stages r and 2p-1-r, and `m` microbatches. REQUIRES
// m >= 2p.
std::vector<Action> dualpipe_steps(Rank r, int p, int m);

}  // namespace pipert

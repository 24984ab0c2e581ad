// memory: the most that the activations of a rank take at once.
//
// An activation is there from the start of its F to the end of its B, or of its W if B is split;
// without any backward only while its F runs. If it is computed again, from the start of its R on:
// between F and R there is only the stage's input. From the end of its OFFLOAD to the start of its
// RELOAD there is nothing.
#pragma once

#include <vector>

#include "analysis/costs.h"
#include "analysis/timeline.h"

namespace pipert {

// Activations (of one stage for one microbatch or slice); an input that is kept alone counts as
// none. `actions`: of a rank, in order, no overlapped pairs.
int peak_activations(const std::vector<Action>& actions);
int peak_activations(const std::vector<Span>& spans);

// By rank, in bytes; empty if the costs don't say how many there are in an activation. After its I
// only the costs' `weight_share` of an activation stays. An input is as large as the message that
// brings it; that of the first stage counts as nothing. REQUIRES overlapped pairs taken apart.
std::vector<double> peak_bytes(const Schedule& schedule, const Costs& costs);

}  // namespace pipert

// memory: the most that the activations of a rank take at once (activations.h says how long they
// live).
#pragma once

#include <vector>

#include "analysis/costs.h"
#include "analysis/held_bytes.h"
#include "analysis/timeline.h"

namespace pipert {

// Activations (of one stage for one microbatch or slice); an input that is kept alone counts as
// none. `actions`: of a rank, in order, no overlapped pairs.
int peak_activations(const std::vector<Action>& actions);
int peak_activations(const std::vector<Span>& spans);

// By rank, in bytes; empty if the costs don't say how many there are in an activation. After its I
// only the costs' `weight_share` of an activation stays. An input is as large as the messages that
// bring it; that of the first stage counts as nothing. `held`: what is there besides, at each
// action; empty: nothing. REQUIRES overlapped pairs taken apart.
std::vector<double> peak_bytes(const Schedule& schedule, const Costs& costs,
                               const HeldBytes& held = {});

}  // namespace pipert

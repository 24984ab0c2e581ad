// resolve_costs: what simulate() takes actions and messages to take at least, by stage.
#pragma once

#include "analysis/costs.h"
#include "ir/placement.h"
#include "ir/stage_times.h"

namespace pipert {

// Messages as if each had its link for itself, and held up no rank: with an infinite bandwidth, or
// none that queue, and transfers that don't block, that is all they take. A message inside a rank
// takes no time. Throws ValueError for costs that don't fit the placement.
StageTimes resolve_costs(const Costs& costs, const Placement& placement);

}  // namespace pipert

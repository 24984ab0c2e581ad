// resolve_costs: Costs as simulate() reads them, one number for each stage.
#pragma once

#include "analysis/simulate.h"
#include "ir/placement.h"
#include "ir/stage_times.h"

namespace pipert {

// A message inside a rank takes no time. Throws ValueError for costs that don't fit the placement.
StageTimes resolve_costs(const Costs& costs, const Placement& placement);

}  // namespace pipert

// rules: what list scheduling is tried with, for any placement: a fixed set of rules first, then
// random changes of the best.
#pragma once

#include <vector>

#include "schedule/greedy.h"
#include "schedule/workload.h"
#include "search/random.h"

namespace pipert {

// Warmup depths, what goes first, and when a W may fill a gap, in all combinations.
std::vector<GreedyRules> all_rules(const Workload& workload);

// One to three random changes: of a stage's depth or priority, or of a patience.
void change_rules(GreedyRules& rules, const Workload& workload, Random& random);

}  // namespace pipert

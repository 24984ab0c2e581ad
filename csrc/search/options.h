// options: the options of a schedule that is made for given times, for given costs and memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "analysis/bounds.h"
#include "analysis/costs.h"
#include "schedule/registry.h"

namespace pipert {

// zb_auto's; empty for a generator that is not made for given times. It takes one time of each kind
// and one limit, so these are the means over the stages and the tightest of the ranks, for the
// largest activation; where the cap has no limit the schedule has none either. Throws ValueError
// for times, limits or sizes that are not finite and at least 0, and a share beyond 1.
std::map<std::string, std::int64_t> options_for(const Generator& generator, const Costs& costs,
                                                const MemoryCap& cap);

}  // namespace pipert

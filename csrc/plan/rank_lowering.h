// rank_lowering: the Program of one rank, from the dataflow of all.
#pragma once

#include "plan/clocks.h"
#include "plan/dataflow.h"
#include "plan/lower.h"
#include "plan/program.h"

namespace pipert {

// O(Runs of the rank), but for a logarithm of the number of free slots. Fills all of Program but
// num_stages and num_microbatches. REQUIRES options that lower() accepts.
Program lower_rank(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                   const LowerOptions& options);

}  // namespace pipert

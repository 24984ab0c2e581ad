// versioned_1f1b: the order of 1F1B without a flush between updates, which asynchronous schedules
// share; they differ in when a stage is updated, and in which version of its weights a microbatch
// uses (Note [Weight versions], ir/schedule.h).
#pragma once

#include <functional>

#include "schedule/registry.h"

namespace pipert {

using VersionOf = std::function<WeightVersion(StageIndex, Microbatch)>;

// One stage a rank. The stage is updated after each `accumulate` backwards; F and B of a microbatch
// use version_of(stage, microbatch). Throws ValueError for sizes that a single_stage_frame can't
// take. REQUIRES accumulate >= 1 that divides num_microbatches.
Schedule versioned_1f1b(std::string_view name, const ScheduleRequest& request, int accumulate,
                        const VersionOf& version_of);

}  // namespace pipert

// single_stage: the frame of the schedules that give each rank one stage, its own number, and the
// turns that those of them take which don't split the backward.
#pragma once

#include <string_view>
#include <vector>

#include "schedule/registry.h"

namespace pipert {

// A schedule of that name with the request's sizes, stage r on rank r and no actions yet. Throws
// ValueError if the request asks for another number of stages.
Schedule single_stage_frame(std::string_view name, const ScheduleRequest& request);

// `warmup` forwards of `stage`, then a forward and a backward in turn, then the backwards left.
// REQUIRES 0 <= warmup <= num_microbatches.
std::vector<Action> alternate(StageIndex stage, int num_microbatches, int warmup);

}  // namespace pipert

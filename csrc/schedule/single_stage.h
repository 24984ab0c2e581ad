// single_stage: the frame of the schedules that give each rank one stage, its own number.
#pragma once

#include <string_view>

#include "schedule/registry.h"

namespace pipert {

// A schedule of that name with the request's sizes, stage r on rank r and no actions yet. Throws
// ValueError if the request asks for another number of stages.
Schedule single_stage_frame(std::string_view name, const ScheduleRequest& request);

}  // namespace pipert

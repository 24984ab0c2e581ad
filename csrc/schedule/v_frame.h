// v_frame: the frame of the schedules on a V: rank r owns stage r on the way down and stage 2p-1-r
// on the way up, so that the first and the last stage meet on rank 0.
#pragma once

#include <string_view>

#include "schedule/registry.h"

namespace pipert {

// A schedule of that name with the request's sizes, two stages a rank in a V and no actions yet.
// Throws ValueError if the request asks for another number of stages.
Schedule v_frame(std::string_view name, const ScheduleRequest& request);

}  // namespace pipert

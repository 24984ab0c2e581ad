// bidirectional_frame: the frame of the schedules that run two copies of the model towards each
// other: rank r owns stage r of the first and stage p-1-r of the second.
#pragma once

#include <string_view>

#include "schedule/registry.h"

namespace pipert {

// A schedule of that name with the request's sizes and no actions yet. Throws ValueError unless the
// numbers of ranks and of microbatches are even, and the request asks for two stages a rank or
// leaves that to the generator.
Schedule bidirectional_frame(std::string_view name, const ScheduleRequest& request);

}  // namespace pipert

// looped_frame: the frame of the schedules that deal several stages out to the ranks in a loop.
#pragma once

#include <string_view>

#include "schedule/registry.h"

namespace pipert {

// A schedule of that name with the request's sizes, stage s on rank s % num_ranks, two stages a
// rank unless the request says more, and no actions yet. Throws ValueError for a number of stages
// that the ranks don't divide.
Schedule looped_frame(std::string_view name, const ScheduleRequest& request);

}  // namespace pipert

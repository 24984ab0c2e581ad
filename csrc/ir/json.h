// The JSON form of a Schedule, which loses nothing: name, sizes and placement stand in it, where
// CSV leaves them to the actions. Format: docs/schedules.md, "JSON".
#pragma once

#include <string>
#include <string_view>

#include "ir/schedule.h"

namespace pipert {

// parse_json(to_json(schedule)) is the same schedule, its name too, good or bad. Throws ValueError
// if the name is not UTF-8.
std::string to_json(const Schedule& schedule);

// Throws ValueError with row and column, the path of the value and the reason.
Schedule parse_json(std::string_view text);

}  // namespace pipert

// DeviceSpan: when a lane began and ended a piece of work, by the device's own clock.
#pragma once

#include <cstdint>

namespace pipert {

// Nanoseconds of the host's monotonic clock; 0: that end was not recorded.
struct DeviceSpan {
  std::int64_t started_ns = 0;
  std::int64_t ended_ns = 0;
};

}  // namespace pipert

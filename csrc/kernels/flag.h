// Flags between streams, threads or processes: a number in memory that both see. What is written
// before a flag is seen by who has seen the flag. On a stream these are kernels, for devices
// without stream memory operations (cuStreamWaitValue32); a waiting one occupies a multiprocessor.
//
// Flags count up and may wrap around: one has arrived when flag - value, as a signed number, is not
// negative.
#pragma once

#include <cstdint>

#include "kernels/stream.h"

namespace pipert::kernels {

// When a wait ends.
struct FlagWait {
  std::uint32_t* flag;
  std::uint32_t value;               // of the flag, or a later one
  std::int64_t max_polls;            // a wait that is never answered ends after so many looks
  std::uint32_t* abort = nullptr;    // it ends too when this is no longer 0
  std::uint32_t* outcome = nullptr;  // is given 1 if the flag arrived, 0 if the wait gave up
};

void write_flag(std::uint32_t* flag, std::uint32_t value);
void write_flag(std::uint32_t* flag, std::uint32_t value, DeviceStream stream);

// What comes behind a wait that gave up runs all the same: look at the outcome.
void wait_flag(const FlagWait& wait);
void wait_flag(const FlagWait& wait, DeviceStream stream);

}  // namespace pipert::kernels

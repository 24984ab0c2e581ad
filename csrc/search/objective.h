// Objective: what a search makes as short as it can.
#pragma once

#include <cstdint>

namespace pipert {

enum class Objective : std::uint8_t {
  kMakespan,  // first start to last end: where all ranks wait for the last
  kSpan,      // the longest span of a rank: where each goes on to its next step by itself
};

}  // namespace pipert

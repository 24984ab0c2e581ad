// v_pattern: schedules on a V that repeat one pattern (Qi et al. 2024, arXiv:2405.15362): the start
// times of a microbatch's actions on each rank; the next microbatch starts six units of time later,
// as long as its six actions take.
#pragma once

#include <string_view>

#include "schedule/registry.h"

namespace pipert {

// When one rank starts its actions for microbatch 0, in units of one F, I or W of one stage. Chunk
// 0 is stage r, chunk 1 stage 2p-1-r. The four differ modulo 6; the two weight halves take the
// places that are free.
struct VStarts {
  int forward_0 = 0;
  int forward_1 = 0;
  int input_1 = 0;
  int input_0 = 0;
};

// Repeats the pattern for each microbatch and closes the gaps at both ends: time by time each rank
// takes, of the actions that can run, the first in the pattern, with at most `peak` activations (of
// one stage each) alive, each until its W. O(actions).
Schedule repeat_pattern(std::string_view name, const ScheduleRequest& request,
                        VStarts (*starts)(Rank rank, int num_ranks), int peak);

}  // namespace pipert

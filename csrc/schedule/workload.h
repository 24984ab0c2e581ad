// Workload: what a scheduler of F, I and W has to know, with all defaults resolved: who owns which
// stage, what actions and messages take, and the room for activations. A plain value.
#pragma once

#include <vector>

#include "ir/placement.h"
#include "ir/stage_times.h"

namespace pipert {

struct ActivationRoom {
  std::vector<double> limit;  // shape (num_ranks,); infinity: none
  std::vector<double> size;   // of one microbatch on a stage, shape (num_stages,)
  double weight_share = 1.0;  // the share of it that stays from the end of its I to that of its W
};

struct Workload {
  Placement placement;  // of one copy of the model
  int num_microbatches = 0;
  StageTimes times;
  ActivationRoom room;
};

// Sizes add up in any order: what is above a limit by rounding alone is not above it.
constexpr double with_rounding(double limit) { return limit * (1.0 + 1e-9); }

}  // namespace pipert

// StageOrder: with which microbatches a stage begins and ends, in one rank's Program.
#pragma once

#include <map>

#include "plan/program.h"

namespace pipert {

struct StageOrder {
  static constexpr Microbatch kNone = -1;

  Microbatch first_forward = kNone;
  Microbatch last_forward = kNone;
  Microbatch first_input = kNone;   // of B and I
  Microbatch first_weight = kNone;  // of B and W

  // Whether all that a backward does begins with the microbatch with which the forwards begin.
  // Nodes that can't be split make their weights' gradients in I.
  bool first_comes_first() const {
    return first_input == kNone || (first_input == first_forward && first_weight == first_forward);
  }
};

std::map<StageIndex, StageOrder> stage_orders(const Program& program);

}  // namespace pipert

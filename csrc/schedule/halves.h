// halves: the two halves of a backward, as actions.
#pragma once

#include "ir/action.h"

namespace pipert {

constexpr Action input_half(StageIndex stage, Microbatch microbatch) {
  return {.kind = ActionKind::kInputGrad, .stage = stage, .microbatch = microbatch};
}
constexpr Action weight_half(StageIndex stage, Microbatch microbatch) {
  return {.kind = ActionKind::kWeightGrad, .stage = stage, .microbatch = microbatch};
}

}  // namespace pipert

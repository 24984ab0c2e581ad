#include "schedule/v_rank.h"

#include "base/index.h"
#include "schedule/halves.h"

namespace pipert {

VRank::VRank(Rank rank, int num_ranks, int num_microbatches)
    : num_microbatches_(num_microbatches), stages_{rank, 2 * num_ranks - 1 - rank} {
  actions_.reserve(6 * as_index(num_microbatches));
}

void VRank::repeat(int times, std::initializer_list<VAction> actions) {
  for (int i = 0; i < times; ++i) {
    for (const VAction action : actions) add(action);
  }
}

void VRank::add(VAction action) {
  switch (action) {
    case VAction::kF0:
      return push(next_forward(0));
    case VAction::kF1:
      return push(next_forward(1));
    case VAction::kB0:
      return push(next_backward(0));
    case VAction::kB1:
      return push(next_backward(1));
    case VAction::kI0:
      return push(next_input(0));
    case VAction::kI1:
      return push(next_input(1));
    case VAction::kW0:
      return push(weight_half(stages_[0], weights_[0]++));
    case VAction::kW1:
      return push(weight_half(stages_[1], weights_[1]++));
    case VAction::kW: {
      const Action& input = inputs_[num_weights_++];
      return push(weight_half(input.stage, input.microbatch));
    }
    case VAction::kF0B1: {
      const Action forward = next_forward(0);
      return push(overlap(forward, next_backward(1)));
    }
    case VAction::kF1B0: {
      const Action forward = next_forward(1);
      return push(overlap(forward, next_backward(0)));
    }
  }
}

void VRank::push(const Action& action) {
  if (action.microbatch < num_microbatches_) actions_.push_back(action);
}

Action VRank::next_forward(int chunk) {
  return forward(stages_[as_index(chunk)], forwards_[as_index(chunk)]++);
}

Action VRank::next_backward(int chunk) {
  return backward(stages_[as_index(chunk)], backwards_[as_index(chunk)]++);
}

Action VRank::next_input(int chunk) {
  const Action input = input_half(stages_[as_index(chunk)], backwards_[as_index(chunk)]++);
  inputs_.push_back(input);
  return input;
}

}  // namespace pipert

#include "schedule/delayed_weights.h"

#include <algorithm>

#include "base/index.h"
#include "schedule/halves.h"

namespace pipert {

std::vector<Action> delay_weights(const std::vector<Action>& forwards,
                                  const std::vector<Action>& backwards, std::size_t warmup,
                                  std::size_t lag) {
  const std::size_t size = forwards.size();
  warmup = std::min(warmup, size);
  std::vector<Action> actions;
  actions.reserve(3 * size);
  const auto of = [&](Action half(StageIndex, Microbatch), std::size_t i) {
    actions.push_back(half(backwards[i].stage, backwards[i].microbatch));
  };
  for (std::size_t i = 0; i < warmup; ++i) actions.push_back(forwards[i]);
  for (std::size_t turn = 0; turn < size + lag; ++turn) {
    if (turn + warmup < size) actions.push_back(forwards[turn + warmup]);
    if (turn < size) of(input_half, turn);
    if (turn >= lag) of(weight_half, turn - lag);
  }
  return actions;
}

std::vector<Action> delay_weights(Rank rank, int num_microbatches, int warmup, int lag) {
  std::vector<Action> forwards;
  std::vector<Action> backwards;
  for (Microbatch m = 0; m < num_microbatches; ++m) {
    forwards.push_back(forward(rank, m));
    backwards.push_back(backward(rank, m));
  }
  return delay_weights(forwards, backwards, as_index(warmup), as_index(lag));
}

}  // namespace pipert

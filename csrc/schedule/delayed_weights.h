// delayed_weights: 1F1B of split backwards, with the weight halves some turns behind.
#pragma once

#include <cstddef>
#include <vector>

#include "schedule/registry.h"

namespace pipert {

// `warmup` forwards; then turns of one forward, one input half and the weight half of the input
// half `lag` turns before, each as long as there are any; the weight halves that are left come
// last. `backwards` may hold whole backwards: their stages and microbatches count. REQUIRES as many
// backwards as forwards.
std::vector<Action> delay_weights(const std::vector<Action>& forwards,
                                  const std::vector<Action>& backwards, std::size_t warmup,
                                  std::size_t lag);

// The same for a rank of one stage, its own number, in the order of the microbatches.
std::vector<Action> delay_weights(Rank rank, int num_microbatches, int warmup, int lag);

}  // namespace pipert

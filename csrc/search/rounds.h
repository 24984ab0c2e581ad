// rounds: runs the walks of all placements, round after round, on several threads, until a limit is
// reached or an order is as good as any can be.
//
// Note [The same answer every time]
//
// A round gives each walk a number of tries that depends on the round alone. Walks look at each
// other between rounds only. So as long as no deadline cuts a round short, what comes out depends
// on the seed and the number of tries, and neither on the threads nor on their speed.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "search/walk.h"

namespace pipert {

// The walks over one placement. Stays where it is: its walks look at its workload.
struct Field {
  Workload workload;
  double bound = 0.0;              // no order is better
  std::vector<GreedyRules> rules;  // what list scheduling is tried with first
  std::vector<Walk> walks;         // at least one
};

struct RoundLimits {
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::optional<std::int64_t> tries;  // of each field
  int num_threads = 1;
  std::function<bool()> stop;  // asked every few milliseconds from the calling thread; may throw
};

// Each walk tries one order at least. Returns how many were tried in all.
std::int64_t run_rounds(const std::vector<std::unique_ptr<Field>>& fields,
                        const RoundLimits& limits);

}  // namespace pipert

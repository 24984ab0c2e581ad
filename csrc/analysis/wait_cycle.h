// wait_cycle: the shortest cycle of ranks that wait for each other.
#pragma once

#include <vector>

#include "base/ids.h"

namespace pipert {

// Who waits for whom when nothing moves any more. A rank that is stuck waits for one other, or, in
// a collective, for all that have not come to it.
struct StuckRanks {
  static constexpr int kNone = -1;
  std::vector<Rank> awaited;    // by rank: the one that it waits for; kNone: none, or several
  std::vector<int> collective;  // by rank: the one in which it waits; kNone: in none
  std::vector<std::vector<Rank>> absent;  // by collective: the ranks that it waits for
};

// The ranks of the cycle, each waiting for the next, the lowest first. Of several shortest, any.
// Empty if there is none, which can't be where some rank is stuck and waits only for stuck ones.
// O(ranks), and as much for each collective in which ranks wait.
std::vector<Rank> shortest_cycle(const StuckRanks& stuck);

}  // namespace pipert

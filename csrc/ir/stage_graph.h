// StageGraph: which stages hand data to which beyond the chain, where each stage takes the
// activation of the one before it and gives it back a gradient.
#pragma once

#include <compare>
#include <vector>

#include "base/ids.h"

namespace pipert {

struct StagePair {
  StageIndex from = 0;
  StageIndex to = 0;
  friend auto operator<=>(const StagePair&, const StagePair&) = default;
};

// Of one copy of the model. Sorted, each pair once. Empty: the chain alone.
//
// The chain's own messages always flow, so what else goes forward is ordered by them: F(j, m) comes
// after F(i, m) for every i < j, and B(i, m) after B(j, m), whatever the pairs are.
struct StageGraph {
  std::vector<StagePair> activations;  // from < to - 1
  std::vector<StagePair> gradients;    // from > to + 1

  bool is_chain() const { return activations.empty() && gradients.empty(); }
  friend bool operator==(const StageGraph&, const StageGraph&) = default;
};

}  // namespace pipert

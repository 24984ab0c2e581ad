// StageGraph: which stages hand data to which beyond the chain, where each stage takes the
// activation of the one before it and gives it back a gradient.
#pragma once

#include <compare>
#include <string>
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

// Of pairs in any order, any number of times. ValueError for one that is none beyond the chain.
StageGraph make_stage_graph(std::vector<StagePair> activations, std::vector<StagePair> gradients);

// ValueError for a stage beyond `stages_per_copy`.
void require_stages(const StageGraph& graph, int stages_per_copy);

// "activations 0->2 0->3, gradients 3->0"; "the chain" if there is nothing else.
std::string to_string(const StageGraph& graph);

}  // namespace pipert

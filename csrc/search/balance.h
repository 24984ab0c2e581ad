// balance: which neighbouring layers make up each stage, so that the rank with the most work has as
// little as can be, under limits of what each rank may hold.
//
// Exact where a rank's stages lie at the same distance from both ends of the model: one stage a
// rank, a V, and two copies that run opposite ways. Elsewhere (interleaved loops) the best of
// several starts after moving single layers; the bound says how far it is from what can't be
// beaten.
#pragma once

#include <vector>

#include "ir/placement.h"
#include "search/layers.h"
#include "search/measure.h"

namespace pipert {

struct BalanceRequest {
  Measure work;
  Measure held;               // bytes, of as many layers
  std::vector<double> limit;  // of `held`: one number, one for each rank, or none
  Placement placement;  // its first copy's stages are cut; a rank has its stages of all copies
};

struct Balance {
  Cuts cuts;
  double longest = 0.0;           // the work of the rank that has most
  double bound = 0.0;             // no cuts have less
  std::vector<double> work = {};  // by rank
  std::vector<double> held = {};  // by rank
};

// Of cuts with the same longest rank one whose stages are alike. Deterministic. Throws ValueError
// for fewer layers than stages, numbers that aren't finite and at least 0, and limits that no cuts
// keep (for interleaved loops: that none keep of those tried), with the least that would do.
Balance balance(const BalanceRequest& request);

}  // namespace pipert

// Routes: which values each stage takes and makes, and the way each of them goes.
//
// Note [Star and relay]
// A value goes from its maker to each rank that has a reader, once; a rank's first reader keeps it
// for the later ones. Its gradient goes the other way hop by hop: the last reader's part to the
// reader before, which adds its own in its own backward, and so on to the maker. That costs as many
// messages as parts sent straight to the maker would, and only it gives the bits of the plain loop:
// autograd adds up a tensor's gradients use by use from the last one back, so a reader that uses it
// twice has to add to the sum so far, not make a sum of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "ir/stage_graph.h"

namespace pipert {

// An index into Routes::values.
using ValueId = std::int32_t;

struct ValueRoute {
  StageIndex maker = 0;
  std::vector<StageIndex> readers;  // ascending, all of them later than `maker`; at least one
  bool differentiable = true;       // whether gradients come back
  std::string name;                 // for errors
};

struct StageRoutes {
  std::vector<ValueId> inputs;   // in the order of the stage's positional arguments
  std::vector<ValueId> outputs;  // in the order of the tuple that it returns
};

// Of one copy of the model. Without stages: each takes what the one before returned.
struct Routes {
  std::vector<ValueRoute> values;
  std::vector<StageRoutes> stages;
};

// ValueError for a stage or a value that isn't there, and for readers that don't come after their
// maker in ascending order.
void check(const Routes& routes);

// The pairs that the values' ways make, without those of the chain.
StageGraph stage_graph(const Routes& routes);

}  // namespace pipert

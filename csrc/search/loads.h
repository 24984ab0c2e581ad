// Loads: how cuts of the layers load the ranks, before anything is scheduled.
#pragma once

#include <compare>
#include <vector>

#include "analysis/bounds.h"
#include "ir/placement.h"
#include "search/layers.h"

namespace pipert {

// Less is better.
struct Load {
  double excess = 0.0;   // of one microbatch's activations over the ranks' limits, of all ranks
  double longest = 0.0;  // work of a rank
  friend auto operator<=>(const Load&, const Load&) = default;
};

class Loads {
 public:
  // `work` and `size`: of each layer, for one microbatch. `limit`: of activations, one number, one
  // for each rank, or none.
  Loads(std::vector<double> work, std::vector<double> size, std::vector<double> limit,
        const Placement& placement);

  // Stages whose longest is as short as can be.
  Cuts balanced_stages() const { return balanced_cuts(work_, placement_.num_stages()); }

  // Moves layers between stages while the load gets less.
  Cuts balanced_ranks(Cuts cuts) const;

 private:
  Load load_of(const Cuts& cuts) const;
  std::vector<double> rank_sums(const std::vector<double>& stages) const;

  std::vector<double> work_;   // shape (num_layers,)
  std::vector<double> size_;   // shape (num_layers,)
  std::vector<double> limit_;  // shape (num_ranks,), or empty
  const Placement& placement_;
};

}  // namespace pipert

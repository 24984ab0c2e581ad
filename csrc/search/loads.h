// Loads: how cuts of the layers load the ranks, before anything is scheduled.
#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "ir/placement.h"
#include "search/layers.h"
#include "search/measure.h"

namespace pipert {

// Less is better.
struct Load {
  double excess = 0.0;     // of what is held over the ranks' limits, of all ranks
  double longest = 0.0;    // work of a rank
  double roughness = 0.0;  // the squares of the stages' work, added up: less where it is shared out
  friend auto operator<=>(const Load&, const Load&) = default;
};

// Which limits the stages keep that balanced_stages() makes.
enum class Limits : std::uint8_t {
  kNone,
  kOfStages,  // each alone its rank's: all limits, where no rank has two stages
};

// Cuts are those of one copy of the model; a rank has the work of its stages in all copies.
class Loads {
 public:
  // `held`: what a rank's stages hold together is limited. `limit`: one number, one for each rank,
  // or none. `placement` must stay.
  Loads(Measure work, Measure held, std::vector<double> limit, const Placement& placement);

  // Stages whose longest is as short as can be. Empty if none keep the limits. Takes
  // O(num_stages x num_layers^2).
  Cuts balanced_stages(Limits limits = Limits::kNone) const;

  // Moves layers between stages while the load gets less.
  Cuts balanced_ranks(Cuts cuts) const;

  // Up to rounding: sums that differ by that alone are the same.
  Load load_of(const Cuts& cuts) const;

  // By rank, of its stages in all copies.
  std::vector<double> work_by_rank(const Cuts& cuts) const { return by_rank(work_, cuts); }
  std::vector<double> held_by_rank(const Cuts& cuts) const { return by_rank(held_, cuts); }

  // Whether one rank may hold so much.
  bool keeps_limit(Rank rank, double held) const;

  const Measure& work() const { return work_; }
  const Measure& held() const { return held_; }
  const Placement& placement() const { return placement_; }

 private:
  bool fits(StageIndex stage, int begin, int end) const;
  std::vector<double> by_rank(const Measure& measure, const Cuts& cuts) const;

  Measure work_;
  Measure held_;
  std::vector<double> limit_;  // shape (num_ranks,), or empty
  const Placement& placement_;
};

}  // namespace pipert

// bounds: no schedule can be faster than this. Pure arithmetic over costs, placement, sizes and
// memory; bounds.cpp has the proofs.
//
// They hold for every order of F and B, or of F, I and W, of one copy of the model under
// simulate(), whatever the order of the microbatches.
#pragma once

#include <string_view>
#include <vector>

#include "analysis/simulate.h"
#include "ir/placement.h"

namespace pipert {

// What the activations of each rank may take at any time, as in VerifyOptions.
struct MemoryCap {
  std::vector<double> limit = {};  // one number, one for each rank, or none: no limit
  std::vector<double> activation_size = {
      1.0};  // of one microbatch; one number, or one for each stage
  double weight_share =
      1.0;  // the share of it that stays from the end of its I to the end of its W
};

// Which argument gives a bound; docs/schedules.md has their formulas.
enum class BoundReason : std::uint8_t { kWork, kFillAndDrain, kPath, kInFlight };

struct Bound {
  double value = 0.0;
  BoundReason reason = BoundReason::kWork;
  Rank rank = 0;  // the rank that it is about
};

struct Bounds {
  Bound span;      // of the longest span of a rank
  Bound makespan;  // at least as large
};

// Throws ValueError for costs or limits of the wrong length, several copies of the model, fewer
// than one microbatch, a share that is not from 0 to 1, or a limit that no schedule can keep, with
// the least that would do.
Bounds lower_bounds(const Placement& placement, int num_microbatches, const Costs& costs,
                    const MemoryCap& cap = {});

// "work", "fill and drain", "path", "in flight"
std::string_view reason_name(BoundReason reason);

}  // namespace pipert

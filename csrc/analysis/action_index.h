// ActionIndex: where in a schedule each action stands. Immutable once filled; one lookup is one
// array access.
#pragma once

#include <array>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

// The `position`-th action of `rank`.
struct Place {
  Rank rank = -1;
  int position = -1;
  bool exists() const { return rank >= 0; }
  friend bool operator==(const Place&, const Place&) = default;
};

class ActionIndex {
 public:
  ActionIndex(int num_stages, int num_microbatches, int num_slices = 1)
      : num_stages_(num_stages), num_microbatches_(num_microbatches), num_slices_(num_slices) {}

  // Of a whole schedule. REQUIRES overlapped pairs taken apart, stages and microbatches in range.
  explicit ActionIndex(const Schedule& schedule);

  // Returns false, and changes nothing, if the action has a place already. What may be done to a
  // stage several times (UNSHARD, RESHARD, REDUCE_GRAD, UPDATE) is left out.
  bool insert(const Action& action, Place place);

  // Place{} if there is none, or if the action is out of range. Versions don't count: no action may
  // be there with two of them.
  Place find(const Action& action) const;

 private:
  bool in_range(const Action& action) const;
  std::size_t cell(const Action& action) const;

  int num_stages_ = 0;
  int num_microbatches_ = 0;
  int num_slices_ = 1;
  // By kind, then (stage, microbatch, slice); empty for a kind that never came.
  std::array<std::vector<Place>, kNumActionKinds> places_;
};

}  // namespace pipert

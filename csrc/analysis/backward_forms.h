// BackwardForms: how each backward of a schedule is done, and what becomes of the activations until
// then. Immutable once filled; one lookup is one array access.
#pragma once

#include <cstdint>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

class BackwardForms {
 public:
  // Of a whole schedule. REQUIRES actions in range; overlapped pairs may be there.
  explicit BackwardForms(const Schedule& schedule);

  // Whether the schedule has an I or W of the action's stage and microbatch: then its gradient
  // comes from I, not B. One stage may split the backward of some microbatches and not of others.
  bool is_split(const Action& action) const { return has(action, kSplit); }
  // Whether the activations are computed again (R): between F and R only the stage's input is kept.
  bool is_recomputed(const Action& action) const { return has(action, kRecomputed); }
  // Whether the activations go to the host in between.
  bool is_offloaded(const Action& action) const { return has(action, kOffloaded); }

 private:
  static constexpr std::uint8_t kSplit = 1;
  static constexpr std::uint8_t kRecomputed = 2;
  static constexpr std::uint8_t kOffloaded = 4;

  void note(const Action& action);
  std::size_t cell(const Action& action) const;
  bool has(const Action& action, std::uint8_t form) const {
    return !forms_.empty() && (forms_[cell(action)] & form) != 0;
  }

  int num_stages_ = 0;
  int num_microbatches_ = 0;
  int num_slices_ = 1;
  // Shape (num_stages, num_microbatches, num_slices), of the forms' bits; empty while there are
  // none.
  std::vector<std::uint8_t> forms_;
};

}  // namespace pipert

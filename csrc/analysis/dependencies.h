// What an action needs before it can run: the one place that knows how data flows between stages.
#pragma once

#include <array>
#include <cstddef>

#include "analysis/backward_forms.h"
#include "ir/schedule.h"

namespace pipert {

// One thing that an action reads: `producer` must have run, on its rank, before.
struct Dependency {
  Action producer;
  bool is_message = false;  // the producer's result crosses stages (activation or gradient); else
                            // it is kept state
};

// The few dependencies of one action: a value without an allocation, since there is one for each
// action.
class Dependencies {
 public:
  void add(const Dependency& dependency) { items_[size_++] = dependency; }
  const Dependency* begin() const { return items_.data(); }
  const Dependency* end() const { return items_.data() + size_; }
  std::size_t size() const { return size_; }

 private:
  std::array<Dependency, 6> items_;
  std::size_t size_ = 0;
};

// For F(s,m): F(s-1,m), of the same copy of the model. For B or I(s,m): the B or I of (s+1,m), and
// what holds the activations: F(s,m), its R if they are computed again, its RELOAD if they were on
// the host. For W(s,m): I(s,m). For R: F, and RELOAD if there is one. For OFFLOAD: F. For RELOAD:
// OFFLOAD. For an overlapped pair: those of its F and of its B, but for the pair's own F. For a
// SEND: the action whose result it sends. For a RECV: its SEND. None for UNSHARD, RESHARD,
// REDUCE_GRAD and UPDATE. All of the same slice; between the slices of a microbatch on a stage F
// needs the F of the slice before, B or I that of the slice behind (Note [Sequence slices]).
// `forms`: of this schedule. REQUIRES an action in range.
Dependencies dependencies(const Action& action, const Schedule& schedule,
                          const BackwardForms& forms);

}  // namespace pipert

// What an action needs before it can run: the one place that knows how data flows between stages.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

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
  std::array<Dependency, 4> items_;
  std::size_t size_ = 0;
};

// For F(s,m): F(s-1,m), of the same copy of the model. For B or I(s,m): F(s,m) and the B or I of
// (s+1,m). For W(s,m): I(s,m). For an overlapped pair: those of its F and of its B, but for the
// pair's own F. For a SEND: the action whose result it sends. For a RECV: its SEND. None for
// UNSHARD, RESHARD and REDUCE_GRAD. `splits`: what split_stages() says of this schedule. REQUIRES
// an action whose stage and microbatch are in range.
Dependencies dependencies(const Action& action, const Schedule& schedule,
                          const std::vector<bool>& splits);

// Shape (num_stages * num_microbatches,), stage-major: whether the schedule has an I or W of that
// stage and microbatch (then its gradient comes from I, not B). One stage may split the backward of
// some microbatches and not of others. REQUIRES actions whose stage and microbatch are in range.
std::vector<bool> split_stages(const Schedule& schedule);

}  // namespace pipert

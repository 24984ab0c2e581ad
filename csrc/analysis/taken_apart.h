// TakenApart: a schedule with its overlapped pairs taken apart. A large schedule without any is not
// copied.
#pragma once

#include <optional>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

class TakenApart {
 public:
  // REQUIRES a schedule that outlives this.
  explicit TakenApart(const Schedule& schedule);
  explicit TakenApart(Schedule&&) = delete;

  const Schedule& schedule() const { return copy_ ? *copy_ : given_; }

  // By rank, then by position in schedule(): whether a pair whose halves can run jointly begins
  // there. Empty where there are no pairs.
  std::vector<std::vector<bool>> pair_starts() const;

 private:
  const Schedule& given_;
  std::optional<Schedule> copy_;
};

}  // namespace pipert

// TakenApart: a schedule with its overlapped pairs taken apart. A large schedule without any is not
// copied.
#pragma once

#include <optional>

#include "ir/schedule.h"

namespace pipert {

class TakenApart {
 public:
  // REQUIRES a schedule that outlives this.
  explicit TakenApart(const Schedule& schedule);
  explicit TakenApart(Schedule&&) = delete;

  const Schedule& schedule() const { return copy_ ? *copy_ : given_; }

 private:
  const Schedule& given_;
  std::optional<Schedule> copy_;
};

}  // namespace pipert

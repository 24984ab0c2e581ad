// columns: a row of a timeline at the resolution of a picture, however many spans it has.
#pragma once

#include <vector>

#include "analysis/timeline.h"

namespace pipert {

// Neighbouring columns in which the same kind takes most of the time. Columns that are idle most of
// the time are in no run.
struct Run {
  ActionKind kind = ActionKind::kForward;
  int begin = 0;
  int end = 0;  // one past the last
};

// `spans` from `start` on, `makespan` cut into `num_columns`. O(spans + columns) if spans
// don't overlap. REQUIRES
// makespan > 0 and num_columns > 0.
std::vector<Run> runs_of(const std::vector<Span>& spans, double start, double makespan,
                         int num_columns);

}  // namespace pipert

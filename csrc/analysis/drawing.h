// drawing: what every drawing of a timeline has to know about it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "analysis/timeline.h"
#include "base/error.h"

namespace pipert {

// The stages that a rank runs, ascending, each once.
inline std::vector<StageIndex> stages_seen(const std::vector<Span>& spans) {
  std::vector<StageIndex> stages;
  for (const Span& span : spans) stages.push_back(span.action.stage);
  std::sort(stages.begin(), stages.end());
  stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
  return stages;
}

// Two finite times may be farther apart than a number can say.
inline void require_drawable(const Timeline& timeline) {
  if (std::isfinite(timeline.makespan)) return;
  throw ValueError(concat("a makespan must be finite to be drawn, got ", timeline.makespan));
}

}  // namespace pipert

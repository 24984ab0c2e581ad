// drawing: what every drawing of a timeline has to know about it.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "analysis/byte_size.h"
#include "analysis/timeline.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {

// The stages that a rank runs, ascending, each once.
inline std::vector<StageIndex> stages_seen(const std::vector<Span>& spans) {
  std::vector<StageIndex> stages;
  for (const Span& span : spans) stages.push_back(span.action.stage);
  std::sort(stages.begin(), stages.end());
  stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
  return stages;
}

// "8", or "1.5 GB": the most that a rank's activations take.
inline std::string peak_label(const Timeline& timeline, Rank rank, bool in_bytes) {
  return in_bytes ? byte_size(timeline.peak_bytes[as_index(rank)])
                  : concat(timeline.peak_memory[as_index(rank)]);
}

// Two finite times may be farther apart than a number can say.
inline void require_drawable(const Timeline& timeline) {
  if (std::isfinite(timeline.makespan)) return;
  throw ValueError(concat("a makespan must be finite to be drawn, got ", timeline.makespan));
}

}  // namespace pipert

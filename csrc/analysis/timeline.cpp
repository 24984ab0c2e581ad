#include "analysis/timeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

bool frees_activation(ActionKind kind) {
  return kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad;
}

int peak_of(const std::vector<Span>& spans) {
  const bool kept = std::any_of(spans.begin(), spans.end(), [](const Span& span) {
    return span.action.kind != ActionKind::kForward;
  });
  if (!kept) return spans.empty() ? 0 : 1;
  int alive = 0;
  int peak = 0;
  for (const Span& span : spans) {
    if (span.action.kind == ActionKind::kForward) peak = std::max(peak, ++alive);
    if (frees_activation(span.action.kind)) --alive;
  }
  return peak;
}

void require_sound(const Span& span) {
  switch (span.action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
      break;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
    case ActionKind::kOverlap:
      throw ValueError(
          concat("a timeline holds F, B, I, W and R only, got ", to_string(span.action)));
  }
  if (std::isfinite(span.start) && std::isfinite(span.end) && span.start <= span.end) return;
  throw ValueError(concat("a span must start, then end, at finite times, ", to_string(span.action),
                          " on rank ", span.rank, " has [", span.start, ", ", span.end, "]"));
}

struct Extent {
  double start = 0.0;
  double end = 0.0;
};

// From the first start to the last end. REQUIRES at least one span.
Extent extent_of(const std::vector<Span>& spans) {
  Extent extent{spans.front().start, spans.front().end};
  for (const Span& span : spans) {
    extent = {std::min(extent.start, span.start), std::max(extent.end, span.end)};
  }
  return extent;
}

}  // namespace

Timeline make_timeline(std::vector<std::vector<Span>> ranks) {
  Timeline timeline;
  timeline.ranks = std::move(ranks);
  std::vector<Extent> extents;
  for (const auto& spans : timeline.ranks) {
    std::for_each(spans.begin(), spans.end(), require_sound);
    double busy = 0.0;
    for (const Span& span : spans) busy += span.end - span.start;
    timeline.busy.push_back(busy);
    timeline.peak_memory.push_back(peak_of(spans));
    if (!spans.empty()) extents.push_back(extent_of(spans));
    timeline.spans.push_back(spans.empty() ? 0.0 : extents.back().end - extents.back().start);
  }
  if (!extents.empty()) {
    Extent whole = extents.front();
    for (const Extent& each : extents) {
      whole = {std::min(whole.start, each.start), std::max(whole.end, each.end)};
    }
    timeline.makespan = whole.end - whole.start;
  }
  for (const double busy : timeline.busy) {
    timeline.bubble.push_back(timeline.makespan > 0.0 ? 1.0 - busy / timeline.makespan : 0.0);
  }
  return timeline;
}

}  // namespace pipert

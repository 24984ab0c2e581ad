#include "analysis/timeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "analysis/memory.h"
#include "base/error.h"

namespace pipert {
namespace {

void require_sound(const Span& span, std::size_t rank) {
  switch (span.action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
      break;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kOverlap:
      throw ValueError(concat("a timeline holds no transfers and no overlapped pairs, got ",
                              to_string(span.action)));
  }
  if (std::isfinite(span.start) && std::isfinite(span.end) && span.start <= span.end) return;
  throw ValueError(concat("a span must start, then end, at finite times, ", to_string(span.action),
                          " on rank ", rank, " has [", span.start, ", ", span.end, "]"));
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

double idle_share(double busy, double time) { return time > 0.0 ? 1.0 - busy / time : 0.0; }

}  // namespace

Timeline make_timeline(std::vector<std::vector<Span>> ranks) {
  Timeline timeline;
  timeline.ranks = std::move(ranks);
  std::vector<Extent> extents;
  for (const auto& spans : timeline.ranks) {
    double busy = 0.0;
    for (const Span& span : spans) {
      require_sound(span, timeline.busy.size());
      busy += span.end - span.start;
    }
    timeline.busy.push_back(busy);
    timeline.peak_memory.push_back(peak_activations(spans));
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
  for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
    const double busy = timeline.busy[rank];
    timeline.bubble.push_back(idle_share(busy, timeline.makespan));
    timeline.span_bubble.push_back(idle_share(busy, timeline.spans[rank]));
  }
  return timeline;
}

double first_start(const Timeline& timeline) {
  bool found = false;
  double first = 0.0;
  for (const auto& spans : timeline.ranks) {
    for (const Span& span : spans) {
      first = found ? std::min(first, span.start) : span.start;
      found = true;
    }
  }
  return first;
}

}  // namespace pipert

// counterexample_style: the looks of an SVG picture of a counterexample, by class. Those of the
// page follow the reader's theme; viewers that don't know media queries show the light one.
#pragma once

#include <string_view>

namespace pipert {

inline constexpr std::string_view kCounterexampleStyle = R"(<style>
text { font-family: system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif;
  font-size: 12px; fill: #1f2328; }
.page { fill: #ffffff; } .title { font-size: 13px; font-weight: 600; }
.rank { text-anchor: end; } .box { text-anchor: middle; } .white { fill: #ffffff; }
.dark { fill: #14171a; } .plain { fill: #d9dde2; }
.position, .legend { font-size: 11px; fill: #59606b; } .leap { text-anchor: middle; }
.note { fill: #b3261e; font-weight: 600; }
.culprit { fill: none; stroke: #b3261e; stroke-width: 3; }
.related { fill: none; stroke: #1f2328; stroke-width: 2; }
.absent { fill: none; stroke: #b3261e; stroke-width: 2; stroke-dasharray: 5 3; }
.wait { fill: none; stroke: #b3261e; stroke-width: 1.8; } .tip { fill: #b3261e; }
.order { fill: none; stroke: #59606b; stroke-width: 1.4; stroke-dasharray: 4 3; }
.order-tip { fill: #59606b; } .bar { fill: #9aa4b0; } .over { fill: #b3261e; }
.number { font-size: 11px; text-anchor: middle; }
.limit { stroke: #b3261e; stroke-width: 1.4; stroke-dasharray: 6 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .page { fill: #0d1117; } .white { fill: #ffffff; }
  .dark { fill: #14171a; } .position, .legend { fill: #9aa4b0; }
  .note { fill: #ff8a80; } .related { stroke: #e6edf3; }
  .culprit, .absent, .wait, .limit { stroke: #ff8a80; } .tip, .over { fill: #ff8a80; }
  .order { stroke: #9aa4b0; } .order-tip { fill: #9aa4b0; } .bar { fill: #565b62; }
}
</style>
)";

inline constexpr std::string_view kCounterexampleMarkers = R"(<defs>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" class="tip"/></marker>
<marker id="order-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" class="order-tip"/></marker>
</defs>
)";

}  // namespace pipert

#include <algorithm>
#include <string_view>

#include "analysis/drawing.h"
#include "analysis/messages.h"
#include "analysis/render.h"
#include "analysis/svg.h"
#include "analysis/svg_layout.h"
#include "analysis/svg_legend.h"
#include "analysis/svg_panel.h"
#include "base/error.h"

namespace pipert {
namespace {

// What keeps a picture below about ten megabytes. More actions than this are drawn in columns, and
// these get fewer as ranks get more.
constexpr std::size_t kMostBoxes = 20'000;
constexpr std::size_t kMostBoxesOfRank = 1'000;  // below a pixel each
constexpr int kMostRuns = 400'000;
constexpr std::size_t kMostRanks = 4096;
constexpr std::size_t kMostArrows = 5'000;

struct Extent {
  std::size_t ranks = 0;
  std::size_t boxes = 0;
  std::size_t boxes_of_rank = 0;  // of the one with most
  std::size_t chunks = 1;         // likewise
  bool with_bytes = false;        // of each panel is known how many
};

Extent measure(const std::vector<Panel>& panels) {
  Extent extent;
  extent.with_bytes = !panels.empty();
  for (const Panel& panel : panels) {
    extent.with_bytes = extent.with_bytes && !panel.timeline.peak_bytes.empty();
    require_drawable(panel.timeline);
    extent.ranks += panel.timeline.ranks.size();
    for (const auto& spans : panel.timeline.ranks) {
      extent.boxes += spans.size();
      extent.boxes_of_rank = std::max(extent.boxes_of_rank, spans.size());
      extent.chunks = std::max(extent.chunks, stages_seen(spans).size());
    }
  }
  if (extent.ranks > kMostRanks) {
    throw ValueError(
        concat("at most ", kMostRanks, " ranks fit into an SVG picture, got ", extent.ranks));
  }
  return extent;
}

void require_few_arrows(const std::vector<Panel>& panels, bool in_columns) {
  std::size_t arrows = 0;
  for (const Panel& panel : panels) arrows += messages_of(panel.timeline).size();
  if (arrows <= kMostArrows && !in_columns) return;
  throw ValueError(concat("transfers can be drawn for at most ", kMostArrows, " messages and ",
                          kMostBoxes, " actions, ", kMostBoxesOfRank, " a rank; got ", arrows,
                          " messages; draw without transfers, or fewer microbatches"));
}

// Colours of the page alone follow the reader's theme; a box has the same on any. Viewers that
// don't know media queries show the light one.
constexpr std::string_view kStyle = R"(<style>
text { font-family: system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif;
  font-size: 12px; fill: #1f2328; }
.page { fill: #ffffff; } .idle { fill: #f3f4f6; } .stripe { stroke: #cfd4da; }
.rule { fill: #8a8f98; } .foot { fill: #2b2b2b; } .pale { fill: #a9d3f5; }
.title { font-size: 14px; font-weight: 600; }
.rank, .head { text-anchor: end; }
.light, .dark { font-size: 11px; text-anchor: middle; }
.light { fill: #ffffff; } .dark { fill: #14171a; }
.axis, .head, .tick { font-size: 11px; fill: #59606b; }
.tick { text-anchor: middle; }
.activation, .gradient { stroke: #59606b; stroke-width: 1; }
.gradient { stroke-dasharray: 3 2; } .tip { fill: #59606b; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page { fill: #0d1117; } .idle { fill: #1b2027; } .stripe { stroke: #3d444d; }
  .light { fill: #ffffff; } .dark { fill: #14171a; }
  .foot { fill: #565b62; } .pale { fill: #a9d3f5; }
  .axis, .head, .tick { fill: #9aa4b0; }
  .activation, .gradient { stroke: #b5bec9; } .tip { fill: #b5bec9; }
}
</style>
)";

constexpr std::string_view kDefinitions = R"(<defs>
<pattern id="idle" width="6" height="6" patternUnits="userSpaceOnUse">
<rect width="6" height="6" class="idle"/>
<path d="M-1 1l2-2M0 6l6-6M5 7l2-2" class="stripe"/>
</pattern>
<marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L6 3L0 6z" class="tip"/></marker>
</defs>
)";

}  // namespace

std::string render_svg(const std::vector<Panel>& panels, const SvgOptions& options) {
  const Extent extent = measure(panels);
  const bool in_columns = extent.boxes > kMostBoxes || extent.boxes_of_rank > kMostBoxesOfRank;
  if (options.transfers) require_few_arrows(panels, in_columns);
  PanelStyle style{.rows = layout_rows(static_cast<int>(extent.ranks), options.transfers),
                   .with_arrows = options.transfers,
                   .with_bytes = extent.with_bytes};
  if (in_columns) {
    style.num_columns =
        std::min(static_cast<int>(kPlotWidth), kMostRuns / static_cast<int>(extent.ranks));
  }
  const DrawnLegend legend = svg_legend(panels, {.num_chunks = static_cast<int>(extent.chunks),
                                                 .with_arrows = options.transfers,
                                                 .in_columns = in_columns,
                                                 .with_bytes = extent.with_bytes});
  double height = legend.height;
  for (const Panel& panel : panels) height += panel_height(panel, style.rows) + kPanelGap;
  const std::string size =
      concat("width=\"", svg_number(kWidth), "\" height=\"", svg_number(height), "\"");
  std::string out =
      concat("<svg xmlns=\"http://www.w3.org/2000/svg\" ", size, " viewBox=\"0 0 ",
             svg_number(kWidth), " ", svg_number(height), "\">\n", kStyle, kDefinitions);
  out += svg_rect({0.0, 0.0, kWidth, height}, "class=\"page\"");
  out += legend.svg;
  double top = legend.height;
  for (const Panel& panel : panels) {
    out += svg_panel(panel, style, top);
    top += panel_height(panel, style.rows) + kPanelGap;
  }
  return out + "</svg>\n";
}

}  // namespace pipert

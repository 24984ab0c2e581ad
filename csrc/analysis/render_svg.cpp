#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

#include "analysis/drawing.h"
#include "analysis/render.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// Lengths in SVG user units (pixels at 100 %).
constexpr double kWidth = 1200.0;
constexpr double kLeft = 64.0;
constexpr double kRight = 56.0;
constexpr double kTop = 44.0;  // holds the legend
constexpr double kTitleHeight = 26.0;
constexpr double kRowHeight = 28.0;
constexpr double kBoxHeight = 22.0;
constexpr double kAxisHeight = 40.0;
constexpr double kPanelGap = 14.0;
constexpr double kDigitWidth = 6.4;
constexpr double kMostTicks = 12.0;

struct Colour {
  int red;
  int green;
  int blue;
};

struct KindColour {
  ActionKind kind;
  std::string_view label;
  Colour colour;
};

// Told apart by the colour-blind, and light enough for black numbers.
constexpr std::array<KindColour, 4> kColours = {{
    {ActionKind::kForward, "F forward", {116, 173, 219}},
    {ActionKind::kBackward, "B backward", {240, 165, 88}},
    {ActionKind::kInputGrad, "I input gradient", {246, 205, 110}},
    {ActionKind::kWeightGrad, "W weight gradient", {152, 199, 143}},
}};

std::string fixed(double value, int digits = 2) {
  std::array<char, 64> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::fixed, digits);
  return end.ec == std::errc() ? std::string(buffer.data(), end.ptr) : "0";
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else {
      out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;  // XML takes no control characters
    }
  }
  return out;
}

// Towards white, for the later stages of a rank: `share` from 0 (as it is) to 1.
std::string paler(const Colour& colour, double share) {
  const auto mix = [&](int value) { return std::lround(value + (255 - value) * share); };
  return concat("rgb(", mix(colour.red), ",", mix(colour.green), ",", mix(colour.blue), ")");
}

const Colour& colour_of(ActionKind kind) {
  for (const KindColour& row : kColours) {
    if (row.kind == kind) return row.colour;
  }
  return kColours.front().colour;
}

std::string text_at(double x, double y, std::string_view look, std::string_view text) {
  return concat("<text x=\"", fixed(x), "\" y=\"", fixed(y), "\" class=\"", look, "\">",
                escaped(text), "</text>\n");
}

std::string box_at(double x, double y, double width, double height, std::string_view fill) {
  return concat("<rect x=\"", fixed(x), "\" y=\"", fixed(y), "\" width=\"", fixed(width),
                "\" height=\"", fixed(height), "\" fill=\"", fill, "\"/>\n");
}

// 1, 2 or 5 times a power of ten, so that at most kMostTicks fit.
double tick_step(double makespan) {
  const double least = makespan / kMostTicks;
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least) return factor * power;
  }
  return 10.0 * power;
}

double panel_height(const Panel& panel) {
  const auto num_ranks = static_cast<double>(panel.timeline.ranks.size());
  return kTitleHeight + kRowHeight * num_ranks + kAxisHeight;
}

class PanelDrawing {
 public:
  PanelDrawing(const Panel& panel, double top)
      : panel_(panel), timeline_(panel.timeline), top_(top), start_(first_start(panel.timeline)) {
    if (timeline_.makespan > 0.0) scale_ = (kWidth - kLeft - kRight) / timeline_.makespan;
  }

  std::string draw() {
    out_ += text_at(kLeft, top_ + kTitleHeight - 10.0, "title", panel_.title);
    out_ += text_at(kWidth - kRight + 8.0, top_ + kTitleHeight - 10.0, "axis", "bubble");
    for (Rank rank = 0; rank < static_cast<Rank>(timeline_.ranks.size()); ++rank) draw_row(rank);
    draw_axis();
    return std::move(out_);
  }

 private:
  double x_of(double time) const { return kLeft + (time - start_) * scale_; }
  double y_of(Rank rank) const { return top_ + kTitleHeight + kRowHeight * rank; }

  void draw_row(Rank rank) {
    const double y = y_of(rank);
    const double baseline = y + kBoxHeight - 7.0;
    const auto& spans = timeline_.ranks[as_index(rank)];
    out_ += text_at(kLeft - 8.0, baseline, "rank", concat("rank ", rank));
    out_ += box_at(kLeft, y, kWidth - kLeft - kRight, kBoxHeight, "#f1f2f4");
    const auto stages = stages_seen(spans);
    for (const Span& span : spans) {
      const auto chunk =
          std::lower_bound(stages.begin(), stages.end(), span.action.stage) - stages.begin();
      const double share = 0.6 * static_cast<double>(chunk) / static_cast<double>(stages.size());
      draw_span(span, y, paler(colour_of(span.action.kind), share));
    }
    const auto percent = std::lround(100.0 * timeline_.bubble[as_index(rank)]);
    out_ += text_at(kWidth - kRight + 8.0, baseline, "axis", concat(percent, "%"));
  }

  void draw_span(const Span& span, double y, std::string_view fill) {
    const double x = x_of(span.start);
    const double width = (span.end - span.start) * scale_;
    // A hair of background keeps neighbours apart, as long as there is something to take it from.
    const double gap = width > 3.0 ? 1.0 : 0.0;
    out_ += concat("<g><title>", to_string(span.action), "</title>",
                   box_at(x, y, width - gap, kBoxHeight, fill));
    const std::string number = std::to_string(span.action.microbatch);
    if (static_cast<double>(number.size()) * kDigitWidth + 2.0 <= width) {
      out_ += text_at(x + (width - gap) / 2.0, y + kBoxHeight - 7.0, "number", number);
    }
    out_ += "</g>\n";
  }

  void draw_axis() {
    const double y = y_of(static_cast<Rank>(timeline_.ranks.size())) + 1.0;
    out_ += box_at(kLeft, y, kWidth - kLeft - kRight, 1.0, "#8a8f98");
    if (!(timeline_.makespan > 0.0)) return;
    const double step = tick_step(timeline_.makespan);
    for (int tick = 0; tick * step <= timeline_.makespan * (1.0 + 1e-9); ++tick) {
      const double x = kLeft + tick * step * scale_;
      out_ += box_at(x, y, 1.0, 5.0, "#8a8f98");
      out_ += text_at(x, y + 18.0, "tick", concat(tick * step));
    }
  }

  const Panel& panel_;
  const Timeline& timeline_;
  double top_;
  double start_;
  double scale_ = 0.0;  // pixels for each unit of time
  std::string out_;
};

bool has_kind(const std::vector<Panel>& panels, ActionKind kind) {
  for (const Panel& panel : panels) {
    for (const auto& spans : panel.timeline.ranks) {
      for (const Span& span : spans) {
        if (span.action.kind == kind) return true;
      }
    }
  }
  return false;
}

std::string legend(const std::vector<Panel>& panels) {
  std::string out;
  double x = kLeft;
  for (const KindColour& row : kColours) {
    if (!has_kind(panels, row.kind)) continue;
    out += box_at(x, 14.0, 14.0, 14.0, paler(row.colour, 0.0));
    out += text_at(x + 20.0, 26.0, "legend", row.label);
    x += 44.0 + 6.6 * static_cast<double>(row.label.size());
  }
  return out + text_at(x, 26.0, "axis",
                       "numbers are microbatches; paler: a later stage of the same rank");
}

constexpr std::string_view kStyle = R"(<style>
text { font-family: system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif; fill: #1f2328; }
.title { font-size: 14px; font-weight: 600; }
.legend { font-size: 12px; }
.rank { font-size: 12px; text-anchor: end; }
.number { font-size: 11px; text-anchor: middle; }
.axis { font-size: 11px; fill: #5c6370; }
.tick { font-size: 11px; fill: #5c6370; text-anchor: middle; }
</style>
)";

}  // namespace

std::string render_svg(const std::vector<Panel>& panels) {
  double height = kTop;
  for (const Panel& panel : panels) height += panel_height(panel) + kPanelGap;
  std::string out = concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", fixed(kWidth, 0),
                           "\" height=\"", fixed(height, 0), "\" viewBox=\"0 0 ", fixed(kWidth, 0),
                           " ", fixed(height, 0), "\">\n", kStyle);
  out += box_at(0.0, 0.0, kWidth, height, "#ffffff");
  out += legend(panels);
  double top = kTop;
  for (const Panel& panel : panels) {
    out += PanelDrawing(panel, top).draw();
    top += panel_height(panel) + kPanelGap;
  }
  return out + "</svg>\n";
}

}  // namespace pipert

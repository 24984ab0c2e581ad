#include "analysis/svg_legend.h"

#include <algorithm>
#include <string_view>

#include "analysis/palette.h"
#include "analysis/svg.h"
#include "analysis/svg_layout.h"
#include "base/error.h"

namespace pipert {
namespace {

constexpr double kSwatch = 16.0;
constexpr double kSwatchTop = 12.0;
constexpr double kBaseline = 25.0;
constexpr double kNoteBaseline = 47.0;
constexpr double kArrow = 26.0;
constexpr double kRow = 24.0;
constexpr int kMostFeet = 4;
constexpr std::string_view kFeet = "stages of a rank";

bool has_colours(const std::vector<Panel>& panels, const KindColours& colours) {
  for (const Panel& panel : panels) {
    for (const auto& spans : panel.timeline.ranks) {
      for (const Span& span : spans) {
        if (&colours_of(span.action.kind) == &colours) return true;
      }
    }
  }
  return false;
}

bool has_versions(const std::vector<Panel>& panels) {
  for (const Panel& panel : panels) {
    for (const auto& spans : panel.timeline.ranks) {
      for (const Span& span : spans) {
        if (is_compute(span.action.kind) && span.action.version > 0) return true;
      }
    }
  }
  return false;
}

double width_of(std::string_view label) { return 28.0 + 6.7 * static_cast<double>(label.size()); }

class Legend {
 public:
  void kind(const KindColours& colours) {
    const bool has_shades = colours.lightest != colours.darkest;
    begin((has_shades ? 3.0 : 1.0) * kSwatch, colours.label);
    for (const int shade : {0, kNumShades / 2, kNumShades - 1}) {
      if (has_shades || shade == 0) swatch(fill(shade_of(colours.kind, shade, kNumShades)));
    }
    label(colours.label);
  }

  void idle() {
    begin(kSwatch, "idle");
    swatch("fill=\"url(#idle)\"");
    label("idle");
  }

  void chunks(int num_chunks) {
    const int shown = std::min(num_chunks, kMostFeet);
    begin(shown * (kSwatch + 2.0), kFeet);
    for (int i = 0; i < shown; ++i) {
      const int chunk = shown == 1 ? 0 : i * (num_chunks - 1) / (shown - 1);
      const double foot = foot_height(chunk, num_chunks, kSwatch);
      const double x = x_;
      swatch(fill(colours_of(ActionKind::kWeightGrad).lightest));
      out_ += svg_rect({x, top() + kSwatch - foot, kSwatch, foot}, "class=\"foot\"");
      x_ += 2.0;
    }
    label(kFeet);
  }

  void arrow(std::string_view look, std::string_view text) {
    begin(kArrow, text);
    const double y = top() + kSwatch / 2.0;
    out_ += svg_line({x_, y}, {x_ + kArrow, y},
                     concat("class=\"", look, "\" marker-end=\"url(#tip)\""));
    x_ += kArrow;
    label(text);
  }

  std::string take() { return std::move(out_); }
  // Of its rows beyond the first.
  double extra_height() const { return row_ * kRow; }

 private:
  double top() const { return kSwatchTop + row_ * kRow; }

  // Begins a new row if what comes would not fit into this one.
  void begin(double width, std::string_view text) {
    if (x_ == kLeft || x_ + width + width_of(text) <= kWidth) return;
    x_ = kLeft;
    ++row_;
  }

  static std::string fill(const Colour& colour) { return concat("fill=\"", to_hex(colour), "\""); }

  void swatch(std::string_view paint) {
    out_ += svg_rect({x_, top(), kSwatch, kSwatch}, paint);
    x_ += kSwatch;
  }

  void label(std::string_view text) {
    out_ += svg_text({x_ + 6.0, kBaseline + row_ * kRow}, "legend", text);
    x_ += width_of(text);
  }

  double x_ = kLeft;
  int row_ = 0;
  std::string out_;
};

std::string note(const LegendContent& content, bool with_versions) {
  std::string text = "numbers are microbatches, later ones darker (anew after 8)";
  if (content.in_columns) {
    text = "too many actions for boxes: each point has the colour of what takes most of its time";
  } else {
    if (content.num_chunks > 1) text += "; a foot: a later stage of the rank";
    if (with_versions) text += "; v2: with version 2 of the weights";
  }
  return text + "; bubble: of the makespan; peak: " +
         (content.with_bytes ? "bytes of activations" : "activations of a stage alive at once");
}

}  // namespace

double foot_height(int chunk, int num_chunks, double box_height) {
  if (chunk == 0) return 0.0;
  const double highest = box_height * 0.36;
  return std::min(box_height * 0.18 * chunk, highest * chunk / (num_chunks - 1));
}

DrawnLegend svg_legend(const std::vector<Panel>& panels, const LegendContent& content) {
  Legend legend;
  for (const KindColours& colours : kPalette) {
    if (has_colours(panels, colours)) legend.kind(colours);
  }
  legend.idle();
  if (content.num_chunks > 1 && !content.in_columns) legend.chunks(content.num_chunks);
  if (content.with_arrows) {
    legend.arrow("activation", "activation");
    legend.arrow("gradient", "gradient");
  }
  const double extra = legend.extra_height();
  return {legend.take() +
              svg_text({kLeft, kNoteBaseline + extra}, "axis", note(content, has_versions(panels))),
          kLegendHeight + extra};
}

}  // namespace pipert

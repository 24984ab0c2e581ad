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
constexpr int kMostFeet = 4;

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

class Legend {
 public:
  void kind(const KindColours& colours) {
    for (const int shade : {0, kNumShades / 2, kNumShades - 1}) {
      swatch(fill(shade_of(colours.kind, shade, kNumShades)));
    }
    label(colours.label);
  }

  void idle() {
    swatch("fill=\"url(#idle)\"");
    label("idle");
  }

  void chunks(int num_chunks) {
    const int shown = std::min(num_chunks, kMostFeet);
    for (int i = 0; i < shown; ++i) {
      const int chunk = shown == 1 ? 0 : i * (num_chunks - 1) / (shown - 1);
      const double foot = foot_height(chunk, num_chunks, kSwatch);
      const double x = x_;
      swatch(fill(colours_of(ActionKind::kWeightGrad).lightest));
      out_ += svg_rect({x, kSwatchTop + kSwatch - foot, kSwatch, foot}, "class=\"foot\"");
      x_ += 2.0;
    }
    label("stages of a rank");
  }

  void arrow(std::string_view look, std::string_view text) {
    out_ += svg_line({x_, kSwatchTop + kSwatch / 2.0}, {x_ + 26.0, kSwatchTop + kSwatch / 2.0},
                     concat("class=\"", look, "\" marker-end=\"url(#tip)\""));
    x_ += 26.0;
    label(text);
  }

  std::string take() { return std::move(out_); }

 private:
  static std::string fill(const Colour& colour) { return concat("fill=\"", to_hex(colour), "\""); }

  void swatch(std::string_view paint) {
    out_ += svg_rect({x_, kSwatchTop, kSwatch, kSwatch}, paint);
    x_ += kSwatch;
  }

  void label(std::string_view text) {
    out_ += svg_text({x_ + 6.0, kBaseline}, "legend", text);
    x_ += 28.0 + 6.7 * static_cast<double>(text.size());
  }

  double x_ = kLeft;
  std::string out_;
};

std::string note(const LegendContent& content) {
  std::string text = "numbers are microbatches, later ones darker (anew after 8)";
  if (content.in_columns) {
    text = "too many actions for boxes: each point has the colour of what takes most of its time";
  } else if (content.num_chunks > 1) {
    text += "; a foot: a later stage of the rank";
  }
  return text + "; bubble: of the makespan; peak: activations of a stage alive at once";
}

}  // namespace

double foot_height(int chunk, int num_chunks, double box_height) {
  if (chunk == 0) return 0.0;
  const double highest = box_height * 0.36;
  return std::min(box_height * 0.18 * chunk, highest * chunk / (num_chunks - 1));
}

std::string svg_legend(const std::vector<Panel>& panels, const LegendContent& content) {
  Legend legend;
  for (const KindColours& colours : kPalette) {
    if (has_kind(panels, colours.kind)) legend.kind(colours);
  }
  legend.idle();
  if (content.num_chunks > 1 && !content.in_columns) legend.chunks(content.num_chunks);
  if (content.with_arrows) {
    legend.arrow("activation", "activation");
    legend.arrow("gradient", "gradient");
  }
  return legend.take() + svg_text({kLeft, kNoteBaseline}, "axis", note(content));
}

}  // namespace pipert

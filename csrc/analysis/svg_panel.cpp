#include "analysis/svg_panel.h"

#include <algorithm>
#include <cmath>

#include "analysis/axis.h"
#include "analysis/columns.h"
#include "analysis/drawing.h"
#include "analysis/messages.h"
#include "analysis/palette.h"
#include "analysis/svg.h"
#include "analysis/svg_legend.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr double kMostTicks = 12.0;
constexpr int kLongestTitle = 110;

// "3", of a slice "3s1", with a later version of the weights "3v2"; the kind where there is no
// microbatch.
std::string box_label(const Action& action, bool with_version) {
  if (!has_microbatch(action.kind)) return std::string(kind_name(action.kind));
  std::string number = std::to_string(action.microbatch);
  if (action.slice != kWholeSequence) number += concat("s", action.slice);
  if (with_version && action.version > 0) number += concat("v", action.version);
  return number;
}

class PanelDrawing {
 public:
  PanelDrawing(const Panel& panel, const PanelStyle& style, double top)
      : panel_(panel),
        timeline_(panel.timeline),
        style_(style),
        top_(top + kTitleHeight),
        start_(first_start(panel.timeline)) {
    for (const auto& spans : timeline_.ranks) {
      for (const Span& span : spans) {
        num_microbatches_ = std::max(num_microbatches_, span.action.microbatch + 1);
      }
    }
  }

  std::string draw() {
    draw_head();
    for (Rank rank = 0; rank < num_ranks(); ++rank) draw_row(rank);
    if (style_.with_arrows) draw_arrows();
    draw_axis();
    return std::move(out_);
  }

 private:
  Rank num_ranks() const { return static_cast<Rank>(timeline_.ranks.size()); }
  double length_of(double duration) const {
    return timeline_.makespan > 0.0 ? duration / timeline_.makespan * kPlotWidth : 0.0;
  }
  double x_of(double time) const { return kLeft + length_of(time - start_); }
  double y_of(Rank rank) const { return top_ + style_.rows.pitch * rank; }

  void draw_head() {
    const double baseline = top_ - 9.0;
    out_ += svg_text({kLeft, baseline}, "title", shortened(panel_.title, kLongestTitle));
    if (num_ranks() == 0) return;
    out_ += svg_text({kBubbleRight, baseline}, "head", "bubble");
    out_ += svg_text({kPeakRight, baseline}, "head", "peak");
  }

  void draw_row(Rank rank) {
    const double y = y_of(rank);
    out_ += svg_rect({kLeft, y, kPlotWidth, style_.rows.box}, "fill=\"url(#idle)\"");
    if (style_.num_columns > 0) {
      draw_columns(rank);
    } else {
      draw_boxes(rank);
    }
    if (rank % style_.rows.label_every != 0) return;
    const double baseline = y + style_.rows.box / 2.0 + 4.0;
    const auto percent = std::lround(100.0 * timeline_.bubble[as_index(rank)]);
    out_ += svg_text({kLeft - 8.0, baseline}, "rank", concat("rank ", rank));
    out_ += svg_text({kBubbleRight, baseline}, "rank", concat(percent, "%"));
    out_ +=
        svg_text({kPeakRight, baseline}, "rank", peak_label(timeline_, rank, style_.with_bytes));
  }

  void draw_boxes(Rank rank) {
    const auto& spans = timeline_.ranks[as_index(rank)];
    const auto stages = stages_seen(spans);
    for (const Span& span : spans) {
      const auto chunk = std::lower_bound(stages.begin(), stages.end(), span.action.stage);
      const double foot = foot_height(static_cast<int>(chunk - stages.begin()),
                                      static_cast<int>(stages.size()), style_.rows.box);
      draw_box(span, y_of(rank), foot, stages.size() > 1);
    }
  }

  void draw_box(const Span& span, double top, double foot, bool with_feet) {
    const double whole = length_of(span.end - span.start);
    // A hair keeps neighbours apart, as long as there is something to take it from.
    const double width = whole > 3.0 ? whole - 1.0 : whole;
    const Rect box{x_of(span.start), top, width, style_.rows.box};
    const Colour shade = shade_of(span.action.kind, span.action.microbatch, num_microbatches_);
    out_ += concat("<g><title>", to_string(span.action), "</title>");
    out_ += svg_rect(box, concat("fill=\"", to_hex(shade), "\""));
    const bool white = colours_of(span.action.kind).white_number;
    if (foot > 0.0) {
      out_ += svg_rect({box.x, box.y + box.height - foot, width, foot},
                       white ? "class=\"pale foot\"" : "class=\"foot\"");
    }
    const auto fits = [&](const std::string& label) {
      return static_cast<double>(label.size()) * kDigitWidth + 2.4 <= whole;
    };
    std::string number = box_label(span.action, true);
    if (!fits(number)) number = box_label(span.action, false);
    if (fits(number) && box.height >= kLabelHeight) {
      const double baseline = box.y + box.height / 2.0 + (with_feet ? 2.0 : 4.0);
      out_ += svg_text({box.x + width / 2.0, baseline}, white ? "light" : "dark", number);
    }
    out_ += "</g>\n";
  }

  // One path for each kind: a horizontal stroke for each run, as high as a box.
  void draw_columns(Rank rank) {
    if (!(timeline_.makespan > 0.0)) return;
    const double column = kPlotWidth / style_.num_columns;
    const auto runs =
        runs_of(timeline_.ranks[as_index(rank)], start_, timeline_.makespan, style_.num_columns);
    const double y = y_of(rank) + style_.rows.box / 2.0;
    for (const KindColours& colours : kPalette) {
      std::string path;
      for (const Run& run : runs) {
        if (run.kind != colours.kind) continue;
        path += concat("M", svg_number(kLeft + run.begin * column), " ", svg_number(y), "h",
                       svg_number((run.end - run.begin) * column));
      }
      if (path.empty()) continue;
      out_ += concat("<path stroke=\"", to_hex(shade_of(colours.kind, kNumShades / 2, kNumShades)),
                     "\" stroke-width=\"", svg_number(style_.rows.box), "\" d=\"", path, "\"/>\n");
    }
  }

  void draw_arrows() {
    for (const MessageSpan& message : messages_of(timeline_)) {
      const Rank source = message.sender.rank;
      const Rank destination = message.reader.rank;
      const bool down = source < destination;
      const double from = y_of(source) + (down ? style_.rows.box : 0.0);
      const double to = y_of(destination) + (down ? 0.0 : style_.rows.box);
      out_ +=
          svg_line({x_of(message.begun), from}, {x_of(message.arrived), to},
                   concat("class=\"", is_gradient(message, timeline_) ? "gradient" : "activation",
                          "\" marker-end=\"url(#tip)\""));
    }
  }

  void draw_axis() {
    const double y = y_of(num_ranks()) + 1.0;
    out_ += svg_rect({kLeft, y, kPlotWidth, 1.0}, "class=\"rule\"");
    const double step = tick_step(timeline_.makespan, kMostTicks);
    if (!(step > 0.0)) return;
    for (int tick = 0; tick * step <= timeline_.makespan * (1.0 + 1e-9); ++tick) {
      const double x = kLeft + length_of(tick * step);
      out_ += svg_rect({x, y, 1.0, 5.0}, "class=\"rule\"");
      out_ += svg_text({x, y + 18.0}, "tick", tick_label(tick * step));
    }
    out_ += svg_text({kBubbleRight, y + 18.0}, "head", "time");
  }

  const Panel& panel_;
  const Timeline& timeline_;
  const PanelStyle& style_;
  double top_;  // of the first row
  double start_;
  int num_microbatches_ = 1;
  std::string out_;
};

}  // namespace

double panel_height(const Panel& panel, const RowLayout& rows) {
  const auto num_ranks = static_cast<double>(panel.timeline.ranks.size());
  return kTitleHeight + rows.pitch * num_ranks + kAxisHeight;
}

std::string svg_panel(const Panel& panel, const PanelStyle& style, double top) {
  return PanelDrawing(panel, style, top).draw();
}

}  // namespace pipert

#include <algorithm>
#include <cmath>

#include "analysis/axis.h"
#include "analysis/drawing.h"
#include "analysis/palette.h"
#include "analysis/render.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr int kNarrowest = 40;
constexpr int kWidest = 10'000;
constexpr int kBubbleWidth = 7;  // " bubble", "   100%"
constexpr int kPeakWidth = 6;    // "  peak"
constexpr int kBytesWidth = 9;   // "  1.25 GB"
constexpr int kTickWidth = 10;   // at least, from tick to tick

std::string padded(std::string text, int width, bool right) {
  const std::string blanks(as_index(std::max(0, width - static_cast<int>(text.size()))), ' ');
  return right ? blanks + text : text + blanks;
}

std::string percent(double share) { return concat(std::lround(100.0 * share), "%"); }

// "F3----": what fills a box of `columns` characters.
std::string box(const Action& action, bool with_stage, std::size_t columns) {
  std::string label = to_string(action);
  if (!with_stage) label.erase(0, label.find_first_not_of("0123456789"));
  if (label.size() > columns) label = kind_name(action.kind);
  label.resize(columns, '-');
  return label;
}

// The plot's characters of one line.
class Line {
 public:
  Line(const Timeline& timeline, int columns, char filler)
      : start_(first_start(timeline)),
        makespan_(timeline.makespan),
        text_(as_index(columns), filler) {}

  void draw(const Span& span, bool with_stage) {
    const std::size_t begin = column(span.start - start_);
    const std::size_t end = std::min(text_.size(), std::max(column(span.end - start_), begin + 1));
    if (begin < end) text_.replace(begin, end - begin, box(span.action, with_stage, end - begin));
  }

  void draw_ticks() {
    const double most = std::max(1.0, std::floor(static_cast<double>(text_.size()) / kTickWidth));
    const double step = tick_step(makespan_, most);
    for (int tick = 0; step > 0.0 && tick * step <= makespan_ * (1.0 + 1e-9); ++tick) {
      const std::string label = tick_label(tick * step);
      const std::size_t begin = column(tick * step);
      if (begin + label.size() <= text_.size()) text_.replace(begin, label.size(), label);
    }
  }

  const std::string& text() const { return text_; }

 private:
  std::size_t column(double time) const {
    if (!(makespan_ > 0.0)) return 0;
    const double position = time / makespan_ * static_cast<double>(text_.size());
    return static_cast<std::size_t>(std::max(0L, std::lround(position)));
  }

  double start_;
  double makespan_;
  std::string text_;
};

class Drawing {
 public:
  Drawing(const Timeline& timeline, int width)
      : timeline_(timeline),
        label_width_(static_cast<int>(concat("rank ", timeline.ranks.size()).size())),
        with_bytes_(!timeline.peak_bytes.empty()),
        peak_width_(with_bytes_ ? kBytesWidth : kPeakWidth),
        columns_(std::max(8, width - label_width_ - 3 - kBubbleWidth - peak_width_)) {}

  std::string draw() {
    out_ = padded("", label_width_ + columns_ + 3, false) + padded("bubble", kBubbleWidth, true) +
           padded("peak", peak_width_, true) + "\n";
    for (Rank rank = 0; rank < static_cast<Rank>(timeline_.ranks.size()); ++rank) draw_rank(rank);
    Line axis(timeline_, columns_, ' ');
    axis.draw_ticks();
    std::string times = padded("time", label_width_, false) + "  " + axis.text();
    times.erase(times.find_last_not_of(' ') + 1);
    out_ += times + "\n";
    return std::move(out_) + legend() + "\n";
  }

 private:
  void draw_rank(Rank rank) {
    const auto& spans = timeline_.ranks[as_index(rank)];
    const bool with_stage = stages_seen(spans).size() > 1;
    any_stage_ = any_stage_ || with_stage;
    Line line(timeline_, columns_, '.');
    for (const Span& span : spans) line.draw(span, with_stage);
    out_ += padded(concat("rank ", rank), label_width_, false) + " |" + line.text() + "|" +
            padded(percent(timeline_.bubble[as_index(rank)]), kBubbleWidth, true) +
            padded(peak_label(timeline_, rank, with_bytes_), peak_width_, true) + "\n";
  }

  std::string legend() const {
    return any_stage_ ? "2F0: stage 2, microbatch 0; dots: idle" : "F0: microbatch 0; dots: idle";
  }

  const Timeline& timeline_;
  int label_width_;
  bool with_bytes_;
  int peak_width_;
  int columns_;
  bool any_stage_ = false;
  std::string out_;
};

}  // namespace

std::string render_text(const Timeline& timeline, int width) {
  if (width < kNarrowest || width > kWidest) {
    throw ValueError(
        concat("width must be at least ", kNarrowest, " and at most ", kWidest, ", got ", width));
  }
  require_drawable(timeline);
  return Drawing(timeline, width).draw();
}

}  // namespace pipert

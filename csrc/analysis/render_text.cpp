#include <algorithm>
#include <cmath>

#include "analysis/drawing.h"
#include "analysis/render.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr int kNarrowest = 40;
constexpr int kBubbleWidth = 5;  // " 100%"

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

class Line {
 public:
  Line(double start, double makespan, int columns)
      : start_(start),
        scale_(makespan > 0.0 ? columns / makespan : 0.0),
        text_(as_index(columns), ' ') {}

  void draw(const Span& span, bool with_stage) {
    const std::size_t begin = column(span.start);
    const std::size_t end = std::min(text_.size(), std::max(column(span.end), begin + 1));
    if (begin < end) text_.replace(begin, end - begin, box(span.action, with_stage, end - begin));
  }

  const std::string& text() const { return text_; }

 private:
  std::size_t column(double time) const {
    return static_cast<std::size_t>(std::lround((time - start_) * scale_));
  }

  double start_;
  double scale_;
  std::string text_;
};

}  // namespace

std::string render_text(const Timeline& timeline, int width) {
  if (width < kNarrowest) {
    throw ValueError(concat("width must be at least ", kNarrowest, ", got ", width));
  }
  const auto num_ranks = static_cast<Rank>(timeline.ranks.size());
  const int label_width = static_cast<int>(concat("rank ", num_ranks - 1).size());
  const int columns = width - label_width - 3 - kBubbleWidth;
  const double start = first_start(timeline);
  std::string out;
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    const auto& spans = timeline.ranks[as_index(rank)];
    const bool with_stage = stages_seen(spans).size() > 1;
    Line line(start, timeline.makespan, columns);
    for (const Span& span : spans) line.draw(span, with_stage);
    out += padded(concat("rank ", rank), label_width, false) + " |" + line.text() + "|" +
           padded(percent(timeline.bubble[as_index(rank)]), kBubbleWidth, true) + "\n";
  }
  return out;
}

}  // namespace pipert

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "analysis/counterexample_layout.h"
#include "analysis/counterexample_rows.h"
#include "analysis/counterexample_style.h"
#include "analysis/palette.h"
#include "analysis/render_counterexample.h"
#include "analysis/svg.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr double kNarrowest = 480.0;
constexpr double kAbove = 30.0;    // of a row's boxes: positions, arcs
constexpr double kBelow = 24.0;    // from the last line to the next row
constexpr double kNoteGap = 13.0;  // where the tips of arrows are seen
constexpr double kBars = 44.0;     // height of the memory limit

std::string path(const std::string& d, std::string_view look, std::string_view tip) {
  return concat("<path d=\"", d, "\" class=\"", look, "\" marker-end=\"url(#", tip, ")\"/>\n");
}

std::string xy(double x, double y) { return concat(svg_number(x), " ", svg_number(y)); }

class Picture {
 public:
  explicit Picture(const Verdict& verdict)
      : counterexample_(verdict.counterexample),
        lines_(title_lines(verdict.ok() ? "ok" : verdict.message)),
        rows_(rows_of(verdict.counterexample)) {
    double y = kPictureMargin + kTitleLine * static_cast<double>(lines_.size());
    for (const Row& row : rows_) {
      RowBoxes& drawing = drawings_.emplace_back(lay_out(row));
      drawing.top = y + kAbove;
      y = drawing.top + kBoxHeight + lower_height(drawing) + kBelow;
      width_ = std::max(width_, drawing.right + kPictureMargin);
    }
    for (const std::string& line : lines_) {
      width_ = std::max(width_, 2.0 * kPictureMargin + title_width(line));
    }
    height_ = y + (rows_.empty() ? 0.0 : 2.0 * kTitleLine);
  }

  std::string draw() {
    const std::string size =
        concat("width=\"", svg_number(width_), "\" height=\"", svg_number(height_), "\"");
    out_ = concat("<svg xmlns=\"http://www.w3.org/2000/svg\" ", size, " viewBox=\"0 0 ",
                  svg_number(width_), " ", svg_number(height_), "\">\n", kCounterexampleStyle,
                  kCounterexampleMarkers);
    out_ += svg_rect({0.0, 0.0, width_, height_}, "class=\"page\"");
    double baseline = kPictureMargin + 4.0;
    for (const std::string& line : lines_) {
      out_ += svg_text({kPictureMargin, baseline}, "title", line);
      baseline += kTitleLine;
    }
    for (const RowBoxes& drawing : drawings_) draw_row(drawing);
    for (const PlaceWait& wait : counterexample_.waits) draw_wait(wait);
    for (const RowBoxes& drawing : drawings_) draw_order(drawing);
    draw_home();
    for (const RowBoxes& drawing : drawings_) draw_notes(drawing);
    if (!rows_.empty()) draw_legend();
    return std::move(out_) + "</svg>\n";
  }

 private:
  bool shows_memory(const RowBoxes& drawing) const {
    return counterexample_.memory_limit.has_value() &&
           drawing.row->rank == counterexample_.places.front().place.rank;
  }

  double bars_height(const RowBoxes& drawing) const {
    return shows_memory(drawing) ? 1.5 * kBars + kNoteHeight : 0.0;
  }

  double lower_height(const RowBoxes& drawing) const {
    return bars_height(drawing) + kNoteGap + kNoteHeight * drawing.num_lines;
  }

  void draw_row(const RowBoxes& drawing) {
    const Row& row = *drawing.row;
    const double baseline = drawing.top + kBoxHeight / 2.0 + 4.0;
    out_ += svg_text({kBoxesLeft - 12.0, baseline}, "rank", concat("rank ", row.rank));
    for (const double x : drawing.leaps) out_ += svg_text({x, baseline}, "leap", "...");
    int next = -1;
    for (std::size_t i = 0; i < drawing.boxes.size(); ++i) {
      const CellBox& box = drawing.boxes[i];
      const bool reached = !row.stuck_at || static_cast<int>(i) <= *row.stuck_at;
      draw_box(box, drawing.top, reached);
      if (box.cell->position != next && !box.cell->is_absent()) {
        const std::string label = concat("#", box.cell->position);
        out_ += svg_text({box.x, drawing.top - 7.0}, "position", label);
      }
      next = box.cell->is_absent() ? -1 : box.cell->position + 1;
    }
    if (shows_memory(drawing)) draw_memory(drawing);
  }

  void draw_box(const CellBox& box, double top, bool reached) {
    const Action& action = box.cell->action;
    const Rect rect{box.x, top, box.width, kBoxHeight};
    const auto colours =
        std::find_if(kPalette.begin(), kPalette.end(),
                     [&](const KindColours& candidate) { return candidate.kind == action.kind; });
    const bool absent = box.cell->is_absent();
    const bool has_colour = colours != kPalette.end() && !absent;
    std::string_view look = "box dark";
    if (absent || !reached) look = "box";  // on the page's colour, or nearly
    if (has_colour && reached && colours->white_number) look = "box white";
    if (!absent) {
      const std::string fill = has_colour
                                   ? concat("fill=\"", to_hex(shade_of(action.kind, 0, 2)), "\"")
                                   : "class=\"plain\"";
      out_ += svg_rect(rect, fill + (reached ? "" : " opacity=\"0.4\""));
    }
    out_ += svg_text({box.middle(), top + kBoxHeight / 2.0 + 4.0}, look, to_string(action));
    if (box.cell->involved == nullptr) return;
    const std::string outline = concat("class=\"", role_name(box.cell->involved->role), "\"");
    out_ += svg_rect({rect.x + 1.0, rect.y + 1.0, rect.width - 2.0, rect.height - 2.0}, outline);
  }

  void draw_memory(const RowBoxes& drawing) {
    const double limit = *counterexample_.memory_limit;
    const double base = drawing.top + kBoxHeight + 1.5 * kBars;
    const auto height = [&](double memory) {
      return limit > 0.0 ? std::min(memory / limit, 1.4) * kBars : (memory > 0.0 ? kBars : 0.0);
    };
    for (const CellBox& box : drawing.boxes) {
      const double memory = box.cell->memory;
      const bool over = memory > limit * (1.0 + 1e-9);
      out_ += svg_rect({box.x, base - height(memory), box.width, height(memory)},
                       over ? "class=\"over\"" : "class=\"bar\"");
      out_ += svg_text({box.middle(), base + 12.0}, "number", concat(memory));
    }
    const double y = base - (limit > 0.0 ? kBars : 0.0);
    out_ += svg_line({kBoxesLeft, y}, {drawing.boxes.back().x + drawing.boxes.back().width, y},
                     "class=\"limit\"");
    out_ += svg_text({kBoxesLeft - 12.0, y + 4.0}, "rank", concat("limit ", limit));
  }

  void draw_notes(const RowBoxes& drawing) {
    const double top = drawing.top + kBoxHeight + bars_height(drawing);
    for (const NoteBox& note : drawing.notes) {
      const double y = top + kNoteGap + kNoteHeight * note.line;  // arrows pass behind
      out_ += svg_rect({note.x, y, note.width, kNoteHeight - 3.0}, "class=\"page\"");
      out_ += svg_text({note.x, y + 11.5}, "note", note.text);
    }
  }

  struct Spot {
    const RowBoxes* drawing = nullptr;
    const CellBox* box = nullptr;
  };

  Spot spot_of(int place) const {
    for (const RowBoxes& drawing : drawings_) {
      for (const CellBox& box : drawing.boxes) {
        if (box.cell->place == place) return {&drawing, &box};
      }
    }
    return {};
  }

  void draw_wait(const PlaceWait& wait) {
    const Spot from = spot_of(wait.source);
    const Spot to = spot_of(wait.target);
    if (from.box == nullptr || to.box == nullptr) return;  // of a rank that is left out
    if (from.drawing == to.drawing) {
      out_ += arc(*from.drawing, *from.box, *to.box, "wait", "tip");
      return;
    }
    out_ += connection(from, to, "wait", "tip");
  }

  // From row to row; around the boxes between them, if there are rows between.
  std::string connection(const Spot& from, const Spot& to, std::string_view look,
                         std::string_view tip) const {
    const bool down = from.drawing->top < to.drawing->top;
    const double from_y = from.drawing->top + (down ? kBoxHeight : 0.0);
    const double to_y = to.drawing->top + (down ? -1.0 : kBoxHeight + 1.0);
    const double bend = (to_y - from_y) * 0.45;
    double passing = 0.0;  // the right end of what lies between
    for (const RowBoxes& between : drawings_) {
      const auto [low, high] = std::minmax(from.drawing->top, to.drawing->top);
      if (between.top > low && between.top < high) passing = std::max(passing, between.boxes_right);
    }
    const double from_x = from.box->middle();
    const double to_x = to.box->middle();
    const double by = passing > 0.0 ? (4.0 * passing - 0.5 * (from_x + to_x)) / 3.0 : 0.0;
    return path(concat("M", xy(from_x, from_y), "C", xy(passing > 0.0 ? by : from_x, from_y + bend),
                       " ", xy(passing > 0.0 ? by : to_x, to_y - bend), " ", xy(to_x, to_y)),
                look, tip);
  }

  // What others wait for comes after the action that its rank is stuck at.
  void draw_order(const RowBoxes& drawing) {
    if (!drawing.row->stuck_at) return;
    const CellBox& stuck = drawing.boxes[as_index(*drawing.row->stuck_at)];
    for (const CellBox& box : drawing.boxes) {
      if (box.cell->place < 0 || box.x <= stuck.x) continue;
      out_ += arc(drawing, box, stuck, "order", "order-tip");
    }
  }

  // From an action on a wrong rank to where it belongs.
  void draw_home() {
    const auto& places = counterexample_.places;
    if (places.size() != 2 || places[1].role != Role::kAbsent) return;
    const Spot from = spot_of(0);
    const Spot to = spot_of(1);
    if (from.box != nullptr && to.box != nullptr && from.drawing != to.drawing) {
      out_ += connection(from, to, "order", "order-tip");
    }
  }

  static std::string arc(const RowBoxes& drawing, const CellBox& from, const CellBox& to,
                         std::string_view look, std::string_view tip) {
    const double y = drawing.top - 1.0;
    const bool back = to.x < from.x;
    const double from_x = from.middle() + (back ? -10.0 : 10.0);
    const double to_x = to.middle() + (back ? 10.0 : -10.0);
    const double lift = std::min(24.0, 12.0 + std::abs(to.middle() - from.middle()) / 16.0);
    return path(concat("M", xy(from_x, y), "C", xy(from_x, y - lift), " ", xy(to_x, y - lift), " ",
                       xy(to_x, y)),
                look, tip);
  }

  void draw_legend() {
    const double baseline = height_ - kPictureMargin;
    std::string text = "#: position on the rank";
    const auto& places = counterexample_.places;
    const bool absent = std::any_of(places.begin(), places.end(), [](const InvolvedPlace& place) {
      return place.role == Role::kAbsent;
    });
    const bool stuck = std::any_of(rows_.begin(), rows_.end(),
                                   [](const Row& row) { return row.stuck_at.has_value(); });
    if (absent) text += "; dashed outline: not there";
    if (stuck) text += "; arrow: waits for; dashed: comes after; pale: never reached";
    if (counterexample_.memory_limit) text += "; bars: activations alive";
    if (const int left_out = num_ranks_left_out(); left_out > 0) {
      text += concat("; ", left_out, " more ranks are not shown");
    }
    out_ += svg_text({kPictureMargin, baseline}, "legend", text);
  }

  int num_ranks_left_out() const {
    std::vector<Rank> ranks;
    for (const InvolvedPlace& involved : counterexample_.places) {
      ranks.push_back(involved.place.rank);
    }
    std::sort(ranks.begin(), ranks.end());
    const auto num_ranks = std::unique(ranks.begin(), ranks.end()) - ranks.begin();
    return static_cast<int>(num_ranks) - static_cast<int>(rows_.size());
  }

  const Counterexample& counterexample_;
  std::vector<std::string> lines_;
  std::vector<Row> rows_;
  std::vector<RowBoxes> drawings_;
  double width_ = kNarrowest;
  double height_ = 0.0;
  std::string out_;
};

}  // namespace

std::string render_svg(const Verdict& verdict) { return Picture(verdict).draw(); }

}  // namespace pipert

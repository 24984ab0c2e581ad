#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "analysis/counterexample_rows.h"
#include "analysis/palette.h"
#include "analysis/render_counterexample.h"
#include "analysis/svg.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr double kMargin = 20.0;
constexpr double kLeft = 84.0;
constexpr double kNarrowest = 640.0;
constexpr double kBox = 30.0;
constexpr double kBoxGap = 4.0;
constexpr double kLeap = 26.0;        // where actions are left out
constexpr double kAbove = 30.0;       // of a row's boxes: positions, arcs
constexpr double kNoteHeight = 16.0;  // of a line under them
constexpr double kBelow = 26.0;       // from the last line to the next row
constexpr double kLetter = 7.0;       // width, about
constexpr double kTextLine = 18.0;
constexpr double kBars = 44.0;  // height of the memory limit
constexpr std::size_t kLettersOfLine = 100;
constexpr std::size_t kMostLines = 8;  // of the message

constexpr std::string_view kStyle = R"(<style>
text { font-family: system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif;
  font-size: 12px; fill: #1f2328; }
.page { fill: #ffffff; } .title { font-size: 13px; font-weight: 600; }
.rank { text-anchor: end; } .box { text-anchor: middle; } .white { fill: #ffffff; }
.dark { fill: #14171a; } .plain { fill: #d9dde2; }
.position, .legend { font-size: 11px; fill: #59606b; } .leap { text-anchor: middle; }
.note { fill: #b3261e; stroke: #ffffff; stroke-width: 4; paint-order: stroke; font-weight: 600; }
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
  .note { fill: #ff8a80; stroke: #0d1117; } .related { stroke: #e6edf3; }
  .culprit, .absent, .wait, .limit { stroke: #ff8a80; } .tip, .over { fill: #ff8a80; }
  .order { stroke: #9aa4b0; } .order-tip { fill: #9aa4b0; } .bar { fill: #565b62; }
}
</style>
)";

constexpr std::string_view kDefinitions = R"(<defs>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" class="tip"/></marker>
<marker id="order-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" class="order-tip"/></marker>
</defs>
)";

std::string path(const std::string& d, std::string_view look, std::string_view tip) {
  return concat("<path d=\"", d, "\" class=\"", look, "\" marker-end=\"url(#", tip, ")\"/>\n");
}

std::string xy(double x, double y) { return concat(svg_number(x), " ", svg_number(y)); }

double text_width(std::string_view text) { return kLetter * static_cast<double>(text.size()); }

// Words in lines; what is more than fits ends in "...".
std::vector<std::string> lines_of(const std::string& message) {
  std::vector<std::string> lines = {""};
  std::size_t begin = 0;
  while (begin < message.size()) {
    const std::size_t end = std::min(message.find(' ', begin), message.size());
    const std::string word = shortened(message.substr(begin, end - begin), 60);
    if (!lines.back().empty() && lines.back().size() + 1 + word.size() > kLettersOfLine) {
      if (lines.size() == kMostLines) {
        lines.back() += " ...";
        return lines;
      }
      lines.emplace_back();
    }
    lines.back() += (lines.back().empty() ? "" : " ") + word;
    begin = end + 1;
  }
  return lines;
}

// Where a cell is drawn.
struct Box {
  const Cell* cell = nullptr;
  double x = 0.0;
  double width = 0.0;
  double middle() const { return x + width / 2.0; }
};

struct Note {
  double x = 0.0;
  int line = 0;
  std::string text;
};

struct RowDrawing {
  const Row* row = nullptr;
  double top = 0.0;  // of its boxes
  std::vector<Box> boxes;
  std::vector<double> leaps;  // where actions are left out
  std::vector<Note> notes;
  int num_lines = 0;  // of notes
  double right = kLeft;
};

RowDrawing lay_out(const Row& row) {
  RowDrawing drawing{.row = &row, .boxes = {}, .leaps = {}, .notes = {}};
  std::vector<double> ends;  // of each line of notes
  double x = kLeft;
  int next = 0;
  const auto leap = [&] {
    drawing.leaps.push_back(x + kLeap / 2.0);
    x += kLeap + kBoxGap;
  };
  for (const Cell& cell : row.cells) {
    if (cell.position > next) leap();
    next = cell.is_absent() ? cell.position : cell.position + 1;
    const double width = std::max(46.0, text_width(to_string(cell.action)) + 14.0);
    drawing.boxes.push_back({&cell, x, width});
    if (cell.involved != nullptr && !cell.involved->note.empty()) {
      const std::string text = shortened(cell.involved->note, 70);
      std::size_t line = 0;
      while (line < ends.size() && ends[line] > x) ++line;
      if (line == ends.size()) ends.push_back(0.0);
      ends[line] = x + text_width(text) + 12.0;
      drawing.right = std::max(drawing.right, ends[line]);
      drawing.notes.push_back({x, static_cast<int>(line), text});
    }
    x += width + kBoxGap;
  }
  if (next < row.num_actions) leap();
  drawing.right = std::max(drawing.right, x);
  drawing.num_lines = static_cast<int>(ends.size());
  return drawing;
}

class Picture {
 public:
  explicit Picture(const Verdict& verdict)
      : counterexample_(verdict.counterexample),
        lines_(lines_of(verdict.ok() ? "ok" : verdict.message)),
        rows_(rows_of(verdict.counterexample)) {
    double y = kMargin + kTextLine * static_cast<double>(lines_.size());
    for (const Row& row : rows_) {
      RowDrawing& drawing = drawings_.emplace_back(lay_out(row));
      drawing.top = y + kAbove;
      y = drawing.top + kBox + lower_height(drawing) + kBelow;
      width_ = std::max(width_, drawing.right + kMargin);
    }
    for (const std::string& line : lines_) {
      width_ = std::max(width_, 2.0 * kMargin + text_width(line));
    }
    height_ = y + (rows_.empty() ? 0.0 : 2.0 * kTextLine);
  }

  std::string draw() {
    const std::string size =
        concat("width=\"", svg_number(width_), "\" height=\"", svg_number(height_), "\"");
    out_ = concat("<svg xmlns=\"http://www.w3.org/2000/svg\" ", size, " viewBox=\"0 0 ",
                  svg_number(width_), " ", svg_number(height_), "\">\n", kStyle, kDefinitions);
    out_ += svg_rect({0.0, 0.0, width_, height_}, "class=\"page\"");
    double baseline = kMargin + 4.0;
    for (const std::string& line : lines_) {
      out_ += svg_text({kMargin, baseline}, "title", line);
      baseline += kTextLine;
    }
    for (const RowDrawing& drawing : drawings_) draw_row(drawing);
    for (const PlaceWait& wait : counterexample_.waits) draw_wait(wait);
    for (const RowDrawing& drawing : drawings_) draw_order(drawing);
    for (const RowDrawing& drawing : drawings_) draw_notes(drawing);
    if (!rows_.empty()) draw_legend();
    return std::move(out_) + "</svg>\n";
  }

 private:
  bool shows_memory(const RowDrawing& drawing) const {
    return counterexample_.memory_limit.has_value() &&
           drawing.row->rank == counterexample_.places.front().place.rank;
  }

  double bars_height(const RowDrawing& drawing) const {
    return shows_memory(drawing) ? 1.5 * kBars + kNoteHeight : 0.0;
  }

  double lower_height(const RowDrawing& drawing) const {
    return bars_height(drawing) + kNoteHeight * drawing.num_lines;
  }

  void draw_row(const RowDrawing& drawing) {
    const Row& row = *drawing.row;
    const double baseline = drawing.top + kBox / 2.0 + 4.0;
    out_ += svg_text({kLeft - 12.0, baseline}, "rank", concat("rank ", row.rank));
    for (const double x : drawing.leaps) out_ += svg_text({x, baseline}, "leap", "...");
    int next = -1;
    for (std::size_t i = 0; i < drawing.boxes.size(); ++i) {
      const Box& box = drawing.boxes[i];
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

  void draw_box(const Box& box, double top, bool reached) {
    const Action& action = box.cell->action;
    const Rect rect{box.x, top, box.width, kBox};
    const auto colours =
        std::find_if(kPalette.begin(), kPalette.end(),
                     [&](const KindColours& candidate) { return candidate.kind == action.kind; });
    const bool absent = box.cell->is_absent();
    std::string_view look = "box dark";
    if (absent) look = "box";
    if (!absent && colours != kPalette.end() && colours->white_number) look = "box white";
    out_ += reached ? "<g>" : "<g opacity=\"0.4\">";
    if (!absent) {
      const bool has_colour = colours != kPalette.end();
      out_ +=
          svg_rect(rect, has_colour ? concat("fill=\"", to_hex(shade_of(action.kind, 0, 2)), "\"")
                                    : "class=\"plain\"");
    }
    out_ += svg_text({box.middle(), top + kBox / 2.0 + 4.0}, look, to_string(action));
    out_ += "</g>\n";
    if (box.cell->involved == nullptr) return;
    const std::string outline = concat("class=\"", role_name(box.cell->involved->role), "\"");
    out_ += svg_rect({rect.x + 1.0, rect.y + 1.0, rect.width - 2.0, rect.height - 2.0}, outline);
  }

  void draw_memory(const RowDrawing& drawing) {
    const double limit = *counterexample_.memory_limit;
    const double base = drawing.top + kBox + 1.5 * kBars;
    const auto height = [&](double memory) {
      return limit > 0.0 ? std::min(memory / limit, 1.4) * kBars : (memory > 0.0 ? kBars : 0.0);
    };
    for (const Box& box : drawing.boxes) {
      const double memory = box.cell->memory;
      const bool over = memory > limit * (1.0 + 1e-9);
      out_ += svg_rect({box.x, base - height(memory), box.width, height(memory)},
                       over ? "class=\"over\"" : "class=\"bar\"");
      out_ += svg_text({box.middle(), base + 12.0}, "number", concat(memory));
    }
    const double y = base - (limit > 0.0 ? kBars : 0.0);
    out_ += svg_line({kLeft, y}, {drawing.boxes.back().x + drawing.boxes.back().width, y},
                     "class=\"limit\"");
    out_ += svg_text({kLeft - 12.0, y + 4.0}, "rank", concat("limit ", limit));
  }

  void draw_notes(const RowDrawing& drawing) {
    const double top = drawing.top + kBox + bars_height(drawing);
    for (const Note& note : drawing.notes) {
      out_ += svg_text({note.x, top + 15.0 + kNoteHeight * note.line}, "note", note.text);
    }
  }

  struct Spot {
    const RowDrawing* drawing = nullptr;
    const Box* box = nullptr;
  };

  Spot spot_of(int place) const {
    for (const RowDrawing& drawing : drawings_) {
      for (const Box& box : drawing.boxes) {
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
    const bool down = from.drawing->top < to.drawing->top;
    const double from_y = from.drawing->top + (down ? kBox : 0.0);
    const double to_y = to.drawing->top + (down ? -1.0 : kBox + 1.0);
    const double bend = (to_y - from_y) * 0.45;
    out_ +=
        path(concat("M", xy(from.box->middle(), from_y), "C", xy(from.box->middle(), from_y + bend),
                    " ", xy(to.box->middle(), to_y - bend), " ", xy(to.box->middle(), to_y)),
             "wait", "tip");
  }

  // What others wait for comes after the action that its rank is stuck at.
  void draw_order(const RowDrawing& drawing) {
    if (!drawing.row->stuck_at) return;
    const Box& stuck = drawing.boxes[as_index(*drawing.row->stuck_at)];
    for (const Box& box : drawing.boxes) {
      if (box.cell->place < 0 || box.x <= stuck.x) continue;
      out_ += arc(drawing, box, stuck, "order", "order-tip");
    }
  }

  static std::string arc(const RowDrawing& drawing, const Box& from, const Box& to,
                         std::string_view look, std::string_view tip) {
    const double y = drawing.top - 1.0;
    const double lift = std::min(24.0, 12.0 + std::abs(to.middle() - from.middle()) / 16.0);
    return path(concat("M", xy(from.middle(), y), "C", xy(from.middle(), y - lift), " ",
                       xy(to.middle(), y - lift), " ", xy(to.middle(), y)),
                look, tip);
  }

  void draw_legend() {
    const double baseline = height_ - kMargin;
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
    out_ += svg_text({kMargin, baseline}, "legend", text);
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
  std::vector<RowDrawing> drawings_;
  double width_ = kNarrowest;
  double height_ = 0.0;
  std::string out_;
};

}  // namespace

std::string render_svg(const Verdict& verdict) { return Picture(verdict).draw(); }

}  // namespace pipert

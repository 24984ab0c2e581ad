#include "analysis/counterexample_layout.h"

#include <algorithm>

#include "analysis/svg.h"

namespace pipert {
namespace {

constexpr double kBoxGap = 4.0;
constexpr double kLeap = 26.0;  // where actions are left out
constexpr std::size_t kLettersOfLine = 92;
constexpr std::size_t kMostLines = 8;  // of the message
constexpr int kLongestWord = 60;
constexpr int kLongestNote = 70;

bool is_wide(char c) { return (c >= 'A' && c <= 'Z') || c == '_' || c == '#'; }

}  // namespace

double text_width(std::string_view text) {
  double width = 0.0;
  for (const char c : text) width += is_wide(c) ? 8.8 : 7.2;
  return width;
}

double title_width(std::string_view text) { return 1.12 * text_width(text); }

std::vector<std::string> title_lines(const std::string& message) {
  std::vector<std::string> lines = {""};
  std::size_t begin = 0;
  while (begin < message.size()) {
    const std::size_t end = std::min(message.find(' ', begin), message.size());
    const std::string word = shortened(message.substr(begin, end - begin), kLongestWord);
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

RowBoxes lay_out(const Row& row) {
  RowBoxes drawing{.row = &row, .boxes = {}, .leaps = {}, .notes = {}};
  std::vector<double> ends;  // of each line of notes
  double x = kBoxesLeft;
  int next = 0;
  const auto leap = [&] {
    drawing.leaps.push_back(x + kLeap / 2.0);
    x += kLeap + kBoxGap;
  };
  for (const Cell& cell : row.cells) {
    if (cell.position > next) leap();
    next = cell.is_absent() ? cell.position : cell.position + 1;
    const double box_width = std::max(46.0, text_width(to_string(cell.action)) + 16.0);
    drawing.boxes.push_back({&cell, x, box_width});
    if (cell.involved != nullptr && !cell.involved->note.empty()) {
      const std::string text = shortened(cell.involved->note, kLongestNote);
      std::size_t line = 0;
      while (line < ends.size() && ends[line] > x) ++line;
      if (line == ends.size()) ends.push_back(0.0);
      const double width = text_width(text) + 6.0;
      ends[line] = x + width + 8.0;
      drawing.right = std::max(drawing.right, ends[line]);
      drawing.notes.push_back({x, width, static_cast<int>(line), text});
    }
    x += box_width + kBoxGap;
  }
  if (next < row.num_actions) leap();
  drawing.boxes_right = x;
  drawing.right = std::max(drawing.right, x);
  drawing.num_lines = static_cast<int>(ends.size());
  return drawing;
}

}  // namespace pipert

#include <algorithm>

#include "analysis/counterexample_rows.h"
#include "analysis/render_counterexample.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

std::string framed(const Cell& cell) {
  const std::string text = to_string(cell.action);
  if (cell.involved == nullptr) return text;
  switch (cell.involved->role) {
    case Role::kCulprit:
      return "[" + text + "]";
    case Role::kAbsent:
      return "(" + text + ")";
    case Role::kRelated:
      return "<" + text + ">";
  }
  return text;
}

// A note under its action, on a line of its own.
std::string note_line(std::size_t column, const std::string& note) {
  return std::string(column, ' ') + note + "\n";
}

std::string memory_line(const Row& row, const std::vector<std::size_t>& columns, double limit) {
  std::string line;
  for (std::size_t i = 0; i < row.cells.size(); ++i) {
    line.resize(std::max(line.size(), columns[i]), ' ');
    line += concat(row.cells[i].memory, " ");
  }
  return line + concat("alive, of ", limit, "\n");
}

std::string draw(const Row& row, const Counterexample& counterexample, std::size_t label_width) {
  std::string line = concat("rank ", row.rank);
  line.resize(label_width, ' ');
  line += " |";
  std::string notes;
  std::vector<std::size_t> columns;
  int next = 0;  // the position that would come if none was left out
  for (const Cell& cell : row.cells) {
    if (cell.position > next) line += concat(" .. #", cell.position);
    line += ' ';
    columns.push_back(line.size());
    line += framed(cell);
    next = cell.is_absent() ? cell.position : cell.position + 1;
    if (cell.involved != nullptr && !cell.involved->note.empty()) {
      notes += note_line(columns.back(), cell.involved->note);
    }
  }
  if (next < row.num_actions) line += " ..";
  line += "\n";
  const bool passes = counterexample.memory_limit.has_value();
  if (passes) line += memory_line(row, columns, *counterexample.memory_limit);
  return line + notes;
}

}  // namespace

std::string render_text(const Verdict& verdict) {
  if (verdict.ok()) return "ok\n";
  const std::vector<Row> rows = rows_of(verdict.counterexample);
  std::string out = verdict.message + "\n";
  std::size_t label_width = 0;
  for (const Row& row : rows) {
    label_width = std::max(label_width, concat("rank ", row.rank).size());
  }
  for (const Row& row : rows) out += draw(row, verdict.counterexample, label_width);
  return out;
}

}  // namespace pipert

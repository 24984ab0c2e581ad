#include "analysis/columns.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "analysis/palette.h"
#include "base/index.h"

namespace pipert {
namespace {

using Shares = std::array<double, kPalette.size()>;  // of a column's width, by kind

std::size_t row_of(ActionKind kind) {
  return static_cast<std::size_t>(&colours_of(kind) - kPalette.data());
}

// `begin` and `end` in columns.
void add(std::vector<Shares>& columns, std::size_t row, double begin, double end) {
  const int last = static_cast<int>(columns.size()) - 1;
  const int to = std::clamp(static_cast<int>(end), 0, last);
  for (int i = std::clamp(static_cast<int>(begin), 0, last); i <= to; ++i) {
    const double share = std::min(end, i + 1.0) - std::max(begin, static_cast<double>(i));
    columns[as_index(i)][row] += std::max(0.0, share);
  }
}

}  // namespace

std::vector<Run> runs_of(const std::vector<Span>& spans, double start, double makespan,
                         int num_columns) {
  std::vector<Shares> columns(as_index(num_columns), Shares{});
  const auto column_of = [&](double time) { return (time - start) / makespan * num_columns; };
  for (const Span& span : spans) {
    add(columns, row_of(span.action.kind), column_of(span.start), column_of(span.end));
  }
  std::vector<Run> runs;
  for (int i = 0; i < num_columns; ++i) {
    const Shares& shares = columns[as_index(i)];
    double idle = 1.0;
    for (const double share : shares) idle -= share;
    const auto most = std::max_element(shares.begin(), shares.end());
    if (*most <= 0.0 || *most < idle) continue;
    const ActionKind kind = kPalette[static_cast<std::size_t>(most - shares.begin())].kind;
    if (!runs.empty() && runs.back().end == i && runs.back().kind == kind) {
      ++runs.back().end;
    } else {
      runs.push_back({kind, i, i + 1});
    }
  }
  return runs;
}

}  // namespace pipert

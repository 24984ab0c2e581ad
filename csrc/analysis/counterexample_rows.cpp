#include "analysis/counterexample_rows.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {
namespace {

class RowMaker {
 public:
  RowMaker(const Counterexample& counterexample, const Window& window)
      : counterexample_(counterexample), window_(window) {}

  Row make() {
    row_.rank = window_.rank;
    row_.num_actions = window_.num_actions;
    int previous = -1;
    for (const Window::Entry& entry : window_.entries) {
      add_absent(previous + 1, entry.position);
      row_.cells.push_back({entry.position, entry.action, entry.memory});
      previous = entry.position;
    }
    add_absent(previous + 1, window_.num_actions);
    for (Cell& cell : row_.cells) find_place(cell);
    for (const PlaceWait& wait : counterexample_.waits) {
      for (std::size_t i = 0; i < row_.cells.size(); ++i) {
        if (wait.reason != WaitReason::kInput && row_.cells[i].place == wait.source) {
          row_.stuck_at = static_cast<int>(i);
        }
      }
    }
    return std::move(row_);
  }

 private:
  const std::vector<InvolvedPlace>& places() const { return counterexample_.places; }

  void add_absent(int first, int last) {
    for (const InvolvedPlace& involved : places()) {
      const auto [rank, position] = involved.place;
      if (involved.role != Role::kAbsent || rank != window_.rank) continue;
      if (position < first || position > last || was_added(involved.action)) continue;
      row_.cells.push_back({position, involved.action});
      row_.cells.back().involved = &involved;
    }
  }

  bool was_added(const Action& action) const {
    return std::any_of(row_.cells.begin(), row_.cells.end(),
                       [&](const Cell& cell) { return cell.is_absent() && cell.action == action; });
  }

  void find_place(Cell& cell) const {
    for (std::size_t i = 0; i < places().size(); ++i) {
      const InvolvedPlace& involved = places()[i];
      if (involved.place != Place{window_.rank, cell.position}) continue;
      if (involved.action != cell.action) continue;
      if ((involved.role == Role::kAbsent) != cell.is_absent()) continue;
      cell.involved = &involved;
      cell.place = static_cast<int>(i);
      return;
    }
  }

  const Counterexample& counterexample_;
  const Window& window_;
  Row row_;
};

}  // namespace

std::vector<Row> rows_of(const Counterexample& counterexample) {
  std::vector<Row> rows;
  for (const Window& window : counterexample.windows) {
    rows.push_back(RowMaker(counterexample, window).make());
  }
  return rows;
}

}  // namespace pipert

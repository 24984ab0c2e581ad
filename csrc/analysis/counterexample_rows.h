// counterexample_rows: the rows that a picture of a counterexample has, one for each rank.
#pragma once

#include <optional>
#include <vector>

#include "analysis/counterexample.h"

namespace pipert {

struct Cell {
  int position = 0;
  Action action;
  double memory = 0.0;
  const InvolvedPlace* involved = nullptr;  // of the counterexample; null for a bystander
  int place = -1;                           // its index there
  bool is_absent() const { return involved != nullptr && involved->role == Role::kAbsent; }
};

struct Row {
  Rank rank = 0;
  int num_actions = 0;
  std::vector<Cell> cells;
  std::optional<int> stuck_at;  // the index of the cell at which the rank waits
};

// What isn't there stands before the action at whose position it could be. The rows point into the
// counterexample.
std::vector<Row> rows_of(const Counterexample& counterexample);

}  // namespace pipert

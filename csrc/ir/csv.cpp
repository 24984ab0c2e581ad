// The CSV form of a Schedule: PyTorch's, read strictly.

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/quote.h"
#include "ir/schedule.h"

namespace pipert {
namespace {

// Where a cell stands, from 1, as editors and spreadsheets count.
struct Cell {
  std::size_t row = 1;
  std::size_t column = 1;
  std::string_view text;
};

std::string describe(const Cell& cell) {
  return concat("row ", cell.row, ", column ", cell.column, ", ", quote(cell.text));
}

// Cuts what stands before `separator` off the front of `rest`.
std::string_view take_until(std::string_view& rest, char separator) {
  const std::size_t end = std::min(rest.find(separator), rest.size());
  const std::string_view piece = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return piece;
}

// Blanks around a cell carry no meaning, in PyTorch neither.
std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

class CsvReader {
 public:
  Schedule read(std::string_view text, std::string name) {
    while (!text.empty()) {
      std::string_view line = take_until(text, '\n');
      if (line.ends_with('\r')) line.remove_suffix(1);
      read_row(line);
    }
    if (ranks_.empty())
      throw ValueError("a CSV schedule must have a row for each rank, got an empty text");
    Placement placement = read_off_placement();
    return {.name = std::move(name),
            .num_microbatches = count_microbatches(ranks_),
            .num_slices = count_slices(ranks_),
            .placement = std::move(placement),
            .ranks = std::move(ranks_)};
  }

 private:
  struct Owner {
    Rank rank = 0;
    Cell cell;
  };

  void read_row(std::string_view line) {
    auto& actions = ranks_.emplace_back();
    Cell cell{.row = ranks_.size(), .column = 0, .text = {}};
    while (!line.empty()) {
      ++cell.column;
      cell.text = trimmed(take_until(line, ','));
      if (cell.text.empty()) continue;
      try {
        actions.push_back(parse_action(cell.text));
      } catch (const ValueError& error) {
        throw ValueError(concat("row ", cell.row, ", column ", cell.column, ": ", error.what()));
      }
      note(actions.back(), cell);
    }
  }

  void note(const Action& action, const Cell& cell) {
    if (!is_compute(action.kind)) return;
    note_owner(action.stage, cell);
    if (action.kind == ActionKind::kOverlap) note_owner(action.paired_stage, cell);
  }

  void note_owner(StageIndex stage, const Cell& cell) {
    const Rank rank = static_cast<Rank>(ranks_.size()) - 1;
    const Owner& owner = owners_.try_emplace(stage, Owner{rank, cell}).first->second;
    if (owner.rank == rank) return;
    throw ValueError(concat("stage ", stage, " must be on one rank, got rank ", owner.rank, " (",
                            describe(owner.cell), ") and rank ", rank, " (", describe(cell), ")"));
  }

  Placement read_off_placement() const {
    if (owners_.empty()) throw ValueError("a CSV schedule must have compute actions, got none");
    std::vector<Rank> rank_of;
    rank_of.reserve(owners_.size());
    for (const auto& [stage, owner] : owners_) {
      const auto expected = static_cast<StageIndex>(rank_of.size());
      if (stage != expected) {
        throw ValueError(concat("stages must be numbered from 0 without a gap, stage ", expected,
                                " has no compute action but stage ", stage, " has (",
                                describe(owner.cell), ")"));
      }
      rank_of.push_back(owner.rank);
    }
    require_no_idle_rank(rank_of);
    return Placement(static_cast<int>(ranks_.size()), std::move(rank_of));
  }

  void require_no_idle_rank(const std::vector<Rank>& rank_of) const {
    std::vector<bool> has_stage(ranks_.size(), false);
    for (const Rank rank : rank_of) has_stage[as_index(rank)] = true;
    const auto idle = std::find(has_stage.begin(), has_stage.end(), false);
    if (idle == has_stage.end()) return;
    const auto rank = idle - has_stage.begin();
    throw ValueError(concat("row ", rank + 1, ": every rank must have a compute action, rank ",
                            rank, " has none"));
  }

  std::vector<std::vector<Action>> ranks_;
  std::map<StageIndex, Owner> owners_;  // the first cell that computes each stage
};

}  // namespace

std::string to_csv(const Schedule& schedule) {
  std::string out;
  for (const auto& actions : schedule.ranks) {
    for (std::size_t i = 0; i < actions.size(); ++i) {
      if (i > 0) out.append(",");
      out.append(to_string(actions[i]));
    }
    out.append("\n");
  }
  return out;
}

Schedule parse_csv(std::string_view text, std::string name) {
  return CsvReader().read(text, std::move(name));
}

}  // namespace pipert

#include "analysis/taken_apart.h"

#include <algorithm>

namespace pipert {

TakenApart::TakenApart(const Schedule& schedule) : given_(schedule) {
  const auto is_pair = [](const Action& action) { return action.kind == ActionKind::kOverlap; };
  const bool has_pairs = std::any_of(
      schedule.ranks.begin(), schedule.ranks.end(),
      [&](const auto& actions) { return std::any_of(actions.begin(), actions.end(), is_pair); });
  if (has_pairs) copy_ = split_overlaps(schedule);
}

std::vector<std::vector<bool>> TakenApart::pair_starts() const {
  std::vector<std::vector<bool>> starts;
  if (!copy_) return starts;
  for (const auto& actions : given_.ranks) {
    auto& of_rank = starts.emplace_back();
    for (const Action& action : actions) {
      const bool is_pair = action.kind == ActionKind::kOverlap;
      of_rank.push_back(is_pair && can_run_jointly(action));
      if (is_pair) of_rank.push_back(false);
    }
  }
  return starts;
}

}  // namespace pipert

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

}  // namespace pipert

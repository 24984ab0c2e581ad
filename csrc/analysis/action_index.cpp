#include "analysis/action_index.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {

ActionIndex::ActionIndex(const Schedule& schedule)
    : ActionIndex(schedule.num_stages(), schedule.num_microbatches, schedule.num_slices) {
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i)
      insert(actions[as_index(i)], {rank, i});
  }
}

bool ActionIndex::insert(const Action& action, Place place) {
  if (!has_microbatch(action.kind)) return true;
  auto& places = places_[static_cast<std::size_t>(action.kind)];
  if (places.empty()) {
    places.resize(as_index(num_stages_) * as_index(num_microbatches_) * as_index(num_slices_));
  }
  Place& known = places[cell(action)];
  if (known.exists()) return false;
  known = place;
  return true;
}

Place ActionIndex::find(const Action& action) const {
  const auto& places = places_[static_cast<std::size_t>(action.kind)];
  return places.empty() || !in_range(action) ? Place{} : places[cell(action)];
}

bool ActionIndex::in_range(const Action& action) const {
  return action.stage >= 0 && action.stage < num_stages_ && action.microbatch >= 0 &&
         action.microbatch < num_microbatches_ && action.slice < num_slices_;
}

std::size_t ActionIndex::cell(const Action& action) const {
  const std::size_t row =
      as_index(action.stage) * as_index(num_microbatches_) + as_index(action.microbatch);
  return row * as_index(num_slices_) + as_index(std::max<int>(action.slice, 0));
}

}  // namespace pipert

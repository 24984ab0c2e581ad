#include "analysis/action_index.h"

#include "base/index.h"

namespace pipert {

ActionIndex::ActionIndex(const Schedule& schedule)
    : ActionIndex(schedule.num_stages(), schedule.num_microbatches) {
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i)
      insert(actions[as_index(i)], {rank, i});
  }
}

bool ActionIndex::insert(const Action& action, Place place) {
  if (action.kind == ActionKind::kUnshard || action.kind == ActionKind::kReshard) return true;
  auto& places = places_[static_cast<std::size_t>(action.kind)];
  if (places.empty()) {
    const int columns = has_microbatch(action.kind) ? num_microbatches_ : 1;
    places.resize(as_index(num_stages_) * as_index(columns));
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
  if (action.stage < 0 || action.stage >= num_stages_) return false;
  return !has_microbatch(action.kind) ||
         (action.microbatch >= 0 && action.microbatch < num_microbatches_);
}

std::size_t ActionIndex::cell(const Action& action) const {
  if (!has_microbatch(action.kind)) return as_index(action.stage);
  return as_index(action.stage) * as_index(num_microbatches_) + as_index(action.microbatch);
}

}  // namespace pipert

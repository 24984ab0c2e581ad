#include "schedule/versioned_1f1b.h"

#include <algorithm>

#include "base/index.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

Action update(StageIndex stage, WeightVersion version) {
  return {.kind = ActionKind::kUpdate, .stage = stage, .version = version};
}

}  // namespace

Schedule versioned_1f1b(std::string_view name, const ScheduleRequest& request, int accumulate,
                        const VersionOf& version_of) {
  Schedule schedule = single_stage_frame(name, request);
  const int num_microbatches = request.num_microbatches;
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    const int warmup = std::min(num_microbatches, request.num_ranks - 1 - rank);
    auto& actions = schedule.ranks[as_index(rank)];
    actions.reserve(2 * as_index(num_microbatches) + as_index(num_microbatches / accumulate));
    for (Action& action : alternate(rank, num_microbatches, warmup)) {
      action.version = version_of(rank, action.microbatch);
      actions.push_back(action);
      const int done = action.microbatch + 1;  // backwards, if it is one
      if (action.kind == ActionKind::kBackward && done % accumulate == 0) {
        actions.push_back(update(rank, done / accumulate));
      }
    }
  }
  return schedule;
}

}  // namespace pipert

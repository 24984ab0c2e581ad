#include "schedule/single_stage.h"

#include "base/error.h"
#include "base/index.h"

namespace pipert {

Schedule single_stage_frame(std::string_view name, const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  if (request.num_stages != 0 && request.num_stages != num_ranks) {
    throw ValueError(concat("num_stages must be ", num_ranks, " (num_ranks) for schedule '", name,
                            "', got ", request.num_stages,
                            "; 'interleaved_1f1b' takes several stages a rank"));
  }
  Schedule schedule{.name = std::string(name),
                    .num_microbatches = request.num_microbatches,
                    .placement = Placement::loop(num_ranks, num_ranks),
                    .ranks = {}};
  schedule.ranks.resize(static_cast<std::size_t>(num_ranks));
  return schedule;
}

std::vector<Action> alternate(StageIndex stage, int num_microbatches, int warmup) {
  std::vector<Action> actions;
  actions.reserve(2 * as_index(num_microbatches));
  for (Microbatch m = 0; m < warmup; ++m) actions.push_back(forward(stage, m));
  for (Microbatch m = warmup; m < num_microbatches; ++m) {
    actions.push_back(forward(stage, m));
    actions.push_back(backward(stage, m - warmup));
  }
  for (Microbatch m = num_microbatches - warmup; m < num_microbatches; ++m) {
    actions.push_back(backward(stage, m));
  }
  return actions;
}

}  // namespace pipert

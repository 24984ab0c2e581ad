#include "schedule/looped_frame.h"

#include "base/error.h"
#include "base/index.h"

namespace pipert {

Schedule looped_frame(std::string_view name, const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  const int num_stages = request.num_stages == 0 ? 2 * num_ranks : request.num_stages;
  if (num_stages % num_ranks != 0) {
    throw ValueError(
        concat("num_stages must be a multiple of ", num_ranks, " (num_ranks), got ", num_stages));
  }
  Schedule schedule{.name = std::string(name),
                    .num_microbatches = request.num_microbatches,
                    .placement = Placement::loop(num_ranks, num_stages),
                    .ranks = {}};
  schedule.ranks.resize(as_index(num_ranks));
  return schedule;
}

}  // namespace pipert

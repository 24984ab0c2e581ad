#include "schedule/v_frame.h"

#include "base/error.h"
#include "base/index.h"

namespace pipert {

Schedule v_frame(std::string_view name, const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  if (request.num_stages != 0 && request.num_stages != 2 * num_ranks) {
    throw ValueError(concat("num_stages must be ", 2 * num_ranks, " (2 x num_ranks) for schedule '",
                            name, "', got ", request.num_stages));
  }
  Schedule schedule{.name = std::string(name),
                    .num_microbatches = request.num_microbatches,
                    .placement = Placement::v_shaped(num_ranks, 2 * num_ranks),
                    .ranks = {}};
  schedule.ranks.resize(as_index(num_ranks));
  return schedule;
}

}  // namespace pipert

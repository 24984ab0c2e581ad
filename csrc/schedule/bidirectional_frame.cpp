#include "schedule/bidirectional_frame.h"

#include "base/error.h"
#include "base/index.h"

namespace pipert {

Schedule bidirectional_frame(std::string_view name, const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  if (num_ranks % 2 != 0) {
    throw ValueError(concat("num_ranks must be even for schedule '", name, "', got ", num_ranks));
  }
  if (request.num_microbatches % 2 != 0) {
    throw ValueError(concat("num_microbatches must be even for schedule '", name, "', got ",
                            request.num_microbatches));
  }
  if (request.num_stages != 0 && request.num_stages != 2 * num_ranks) {
    throw ValueError(concat("num_stages must be ", 2 * num_ranks,
                            " (num_ranks stages in each of two copies) for schedule '", name,
                            "', got ", request.num_stages));
  }
  Schedule schedule{.name = std::string(name),
                    .num_microbatches = request.num_microbatches,
                    .placement = Placement::bidirectional(num_ranks),
                    .ranks = {}};
  schedule.ranks.resize(as_index(num_ranks));
  return schedule;
}

}  // namespace pipert

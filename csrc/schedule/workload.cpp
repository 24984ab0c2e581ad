#include "schedule/workload.h"

#include "base/index.h"

namespace pipert {

std::vector<double> least_room(const Placement& placement, const std::vector<double>& size) {
  std::vector<double> least(as_index(placement.num_ranks()), 0.0);
  for (StageIndex stage = 0; stage < placement.num_stages(); ++stage) {
    least[as_index(placement.rank_of(stage))] += size[as_index(stage)];
  }
  return least;
}

}  // namespace pipert

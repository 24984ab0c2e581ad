#include "runtime/core_spread.h"

#include <sched.h>

#include "base/index.h"

namespace pipert {

CoreSpread::CoreSpread(int num_ranks) {
  cpu_set_t allowed;
  if (num_ranks < 2 || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  for (int core = 0; core < CPU_SETSIZE && cores_.size() < as_index(num_ranks); ++core) {
    if (CPU_ISSET(core, &allowed)) cores_.push_back(core);
  }
  if (cores_.size() < as_index(num_ranks)) cores_.clear();
}

void CoreSpread::enter(int rank) const {
  if (cores_.empty() || sched_getcpu() == cores_[as_index(rank)]) return;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(cores_[as_index(rank)], &own);
  // Somebody may have pinned this thread elsewhere: then it stays.
  if (!CPU_ISSET(cores_[as_index(rank)], &allowed)) return;
  if (sched_setaffinity(0, sizeof(own), &own) == 0) sched_setaffinity(0, sizeof(allowed), &allowed);
}

}  // namespace pipert

#include "runtime/core_spread.h"

#include <sched.h>

#include "base/index.h"

namespace pipert {
namespace {

int num_cores() {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
}

}  // namespace

CoreSpread::CoreSpread(int num_ranks)
    : cores_(num_ranks > 1 && num_ranks <= num_cores() ? as_index(num_ranks) : 0) {
  for (auto& core : cores_) core.store(kNone, std::memory_order_relaxed);
}

void CoreSpread::enter(int rank) {
  if (cores_.empty()) return;
  int core = sched_getcpu();
  if (is_taken(core, rank)) {
    move(rank);
    core = sched_getcpu();
  }
  cores_[as_index(rank)].store(core, std::memory_order_relaxed);
}

void CoreSpread::leave(int rank) {
  if (!cores_.empty()) cores_[as_index(rank)].store(kNone, std::memory_order_relaxed);
}

int CoreSpread::core(int rank) const {
  return cores_.empty() ? kNone : cores_[as_index(rank)].load(std::memory_order_relaxed);
}

bool CoreSpread::is_taken(int core, int rank) const {
  for (std::size_t other = 0; other < cores_.size(); ++other) {
    if (other != as_index(rank) && cores_[other].load(std::memory_order_relaxed) == core)
      return true;
  }
  return false;
}

void CoreSpread::move(int rank) const {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t free = allowed;
  for (std::size_t other = 0; other < cores_.size(); ++other) {
    const int core = cores_[other].load(std::memory_order_relaxed);
    if (other != as_index(rank) && core != kNone) CPU_CLR(as_index(core), &free);
  }
  // None is left if somebody pinned this thread to another's core.
  if (CPU_COUNT(&free) == 0) return;
  if (sched_setaffinity(0, sizeof(free), &free) == 0)
    sched_setaffinity(0, sizeof(allowed), &allowed);
}

}  // namespace pipert

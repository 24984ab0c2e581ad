#include "runtime/core_spread.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "base/index.h"

namespace pipert {
namespace {

int num_cores() {
  cpu_set_t allowed;
  return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
}

std::vector<std::shared_ptr<std::atomic<int>>> own_cores(int num_ranks) {
  std::vector<std::shared_ptr<std::atomic<int>>> cores;
  for (int rank = 0; rank < num_ranks; ++rank)
    cores.push_back(std::make_shared<std::atomic<int>>(CoreSpread::kNone));
  return cores;
}

}  // namespace

CoreSpread::CoreSpread(int num_ranks) : CoreSpread(own_cores(num_ranks), 0) {}

CoreSpread::CoreSpread(std::vector<std::shared_ptr<std::atomic<int>>> cores, int first)
    : cores_(std::move(cores)), first_(first) {
  if (cores_.size() < 2 || std::cmp_greater(cores_.size(), num_cores())) cores_.clear();
}

void CoreSpread::enter(int seat) {
  if (cores_.empty()) return;
  int core = sched_getcpu();
  if (is_taken(core, seat)) {
    move(seat);
    core = sched_getcpu();
  }
  // The others read it again and again.
  if (core_of(seat).load(std::memory_order_relaxed) != core)
    core_of(seat).store(core, std::memory_order_relaxed);
}

void CoreSpread::leave(int seat) {
  if (!cores_.empty()) core_of(seat).store(kNone, std::memory_order_relaxed);
}

int CoreSpread::core(int seat) const {
  return cores_.empty() ? kNone : core_of(seat).load(std::memory_order_relaxed);
}

bool CoreSpread::is_taken(int core, int seat) const {
  const std::atomic<int>* const own = &core_of(seat);
  return std::any_of(cores_.begin(), cores_.end(), [&](const auto& other) {
    return other.get() != own && other->load(std::memory_order_relaxed) == core;
  });
}

void CoreSpread::move(int seat) const {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t free = allowed;
  for (const auto& other : cores_) {
    const int core = other->load(std::memory_order_relaxed);
    if (other.get() != &core_of(seat) && core != kNone) CPU_CLR(as_index(core), &free);
  }
  // None is left if somebody pinned this thread to another's core.
  if (CPU_COUNT(&free) == 0) return;
  if (sched_setaffinity(0, sizeof(free), &free) == 0)
    sched_setaffinity(0, sizeof(allowed), &allowed);
}

}  // namespace pipert

// The runtime floor's CoreSpread, which is free of torch: ranks leave each other's cores.

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/index.h"
#include "check.h"
#include "runtime/core_spread.h"

namespace pipert {
namespace {

cpu_set_t affinity() {
  cpu_set_t cores;
  CHECK(sched_getaffinity(0, sizeof(cores), &cores) == 0);
  return cores;
}

void set_affinity(const cpu_set_t& cores) {
  CHECK(sched_setaffinity(0, sizeof(cores), &cores) == 0);
}

std::vector<int> allowed_cores() {
  const cpu_set_t allowed = affinity();
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(as_index(core), &allowed)) cores.push_back(core);
  }
  return cores;
}

cpu_set_t only(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(as_index(core), &cores);
  return cores;
}

// Runs `work` on a thread that begins on `core`.
template <typename Work>
void on_core(int core, const Work& work) {
  std::thread([&] {
    const cpu_set_t allowed = affinity();
    set_affinity(only(core));
    work(allowed);
  }).join();
}

void a_rank_on_anothers_core_moves_and_is_not_pinned() {
  const std::vector<int> cores = allowed_cores();
  if (cores.size() < 2) return;
  int num_shared = 0;
  int num_moved = 0;
  for (int attempt = 0; attempt < 200 && num_shared < 20; ++attempt) {
    CoreSpread spread(2);
    on_core(cores[0], [&](const cpu_set_t& /*allowed*/) { spread.enter(0); });
    on_core(cores[0], [&](const cpu_set_t& allowed) {
      set_affinity(allowed);  // as if Linux had woken it there: it may run anywhere
      if (sched_getcpu() != cores[0]) return;
      ++num_shared;
      spread.enter(1);
      num_moved += spread.core(1) != cores[0] ? 1 : 0;
      const cpu_set_t now = affinity();
      CHECK(CPU_EQUAL(&now, &allowed));
    });
  }
  CHECK(num_shared > 0);
  CHECK(2 * num_moved > num_shared);  // Linux may move it back at once
}

void ranks_of_two_processes_see_each_other() {
  const std::vector<int> cores = allowed_cores();
  if (cores.size() < 2) return;
  std::vector<std::shared_ptr<std::atomic<int>>> shared;
  for (int rank = 0; rank < 2; ++rank)
    shared.push_back(std::make_shared<std::atomic<int>>(CoreSpread::kNone));
  CoreSpread one(shared, 0);
  CoreSpread other(shared, 1);
  int num_moved = 0;
  for (int attempt = 0; attempt < 20; ++attempt) {
    on_core(cores[0], [&](const cpu_set_t& /*allowed*/) {
      one.enter(0);
      CHECK(shared[0]->load() == cores[0]);
      CHECK(shared[1]->load() == CoreSpread::kNone);
    });
    on_core(cores[0], [&](const cpu_set_t& allowed) {
      set_affinity(allowed);
      other.enter(0);
      num_moved += other.core(0) != one.core(0) ? 1 : 0;
      CHECK(shared[1]->load() == other.core(0));
      other.leave(0);
    });
    one.leave(0);
  }
  CHECK(num_moved > 10);  // Linux may move it back at once
}

void a_rank_that_is_pinned_stays() {
  const std::vector<int> cores = allowed_cores();
  if (cores.size() < 2) return;
  CoreSpread spread(2);
  on_core(cores[0], [&](const cpu_set_t& /*allowed*/) { spread.enter(0); });
  on_core(cores[0], [&](const cpu_set_t& /*allowed*/) {
    spread.enter(1);
    CHECK(sched_getcpu() == cores[0]);
    const cpu_set_t now = affinity();
    const cpu_set_t pinned = only(cores[0]);
    CHECK(CPU_EQUAL(&now, &pinned));
  });
}

void a_rank_that_left_has_no_core() {
  const std::vector<int> cores = allowed_cores();
  if (cores.size() < 2) return;
  CoreSpread spread(2);
  on_core(cores[0], [&](const cpu_set_t& /*allowed*/) {
    spread.enter(0);
    CHECK(spread.core(0) == cores[0]);
    spread.leave(0);
    CHECK(spread.core(0) == CoreSpread::kNone);
  });
}

void more_ranks_than_cores_are_left_alone() {
  const std::vector<int> cores = allowed_cores();
  const int num_ranks = static_cast<int>(cores.size()) + 1;
  CoreSpread spread(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    on_core(cores[0], [&](const cpu_set_t& allowed) {
      set_affinity(allowed);
      spread.enter(rank);
      CHECK(spread.core(rank) == CoreSpread::kNone);
    });
  }
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::a_rank_on_anothers_core_moves_and_is_not_pinned();
  pipert::ranks_of_two_processes_see_each_other();
  pipert::a_rank_that_is_pinned_stays();
  pipert::a_rank_that_left_has_no_core();
  pipert::more_ranks_than_cores_are_left_alone();
}

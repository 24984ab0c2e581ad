// walk: steps every rank through its own list, each as far as what it waits for allows.
//
// Used by everything that asks what a schedule does when it runs: the order in which ranks are
// taken up never changes the answer, so it is the cheapest one.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "base/index.h"
#include "ir/action.h"

namespace pipert {

// Until `rank` has done at least `steps` steps.
struct Wait {
  Rank rank = 0;
  int steps = 0;
};

// num_steps[rank]: the length of each list. wait_of(rank, step): a std::optional<Wait> that holds
// that step back. run(rank, step): called once for each step that is done, in an order that
// respects every wait. Returns the number of steps that each rank did: less than num_steps where
// ranks wait for each other.
template <typename WaitOf, typename Run>
std::vector<int> walk(const std::vector<int>& num_steps, WaitOf wait_of, Run run) {
  // A heap by the rank that is waited for, whose first waiter has the least to wait: however many
  // wait for one rank, those that can't go on yet aren't looked at again.
  struct Waiter {
    int steps = 0;
    Rank rank = 0;
  };
  const auto later = [](const Waiter& a, const Waiter& b) { return a.steps > b.steps; };
  std::vector<std::vector<Waiter>> waiters(num_steps.size());

  const auto num_ranks = static_cast<Rank>(num_steps.size());
  std::vector<int> done(num_steps.size(), 0);
  std::vector<Rank> ready;
  for (Rank rank = num_ranks - 1; rank >= 0; --rank) ready.push_back(rank);
  while (!ready.empty()) {
    const Rank rank = ready.back();
    ready.pop_back();
    int& step = done[as_index(rank)];
    while (step < num_steps[as_index(rank)]) {
      const std::optional<Wait> wait = wait_of(rank, step);
      if (wait && done[as_index(wait->rank)] < wait->steps) {
        auto& heap = waiters[as_index(wait->rank)];
        heap.push_back({wait->steps, rank});
        std::push_heap(heap.begin(), heap.end(), later);
        break;
      }
      run(rank, step);
      ++step;
    }
    auto& heap = waiters[as_index(rank)];
    while (!heap.empty() && heap.front().steps <= step) {
      ready.push_back(heap.front().rank);
      std::pop_heap(heap.begin(), heap.end(), later);
      heap.pop_back();
    }
  }
  return done;
}

}  // namespace pipert

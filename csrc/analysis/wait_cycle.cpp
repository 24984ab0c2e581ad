#include "analysis/wait_cycle.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "base/index.h"

namespace pipert {
namespace {

// Ranks that wait for one other: their cycles have no rank in common.
std::vector<Rank> shortest_of_single_waits(const StuckRanks& stuck) {
  const auto next_of = [&](Rank rank) { return stuck.awaited[as_index(rank)]; };
  std::vector<Rank> shortest;
  std::vector<Rank> seen_from(stuck.awaited.size(), StuckRanks::kNone);
  for (Rank first = 0; first < static_cast<Rank>(stuck.awaited.size()); ++first) {
    Rank rank = first;
    while (rank != StuckRanks::kNone && seen_from[as_index(rank)] == StuckRanks::kNone) {
      seen_from[as_index(rank)] = first;
      rank = next_of(rank);
    }
    // Else it ends at a rank that waits for several, or for none, or in a cycle that is known.
    if (rank == StuckRanks::kNone || seen_from[as_index(rank)] != first) continue;
    std::vector<Rank> cycle = {rank};
    for (Rank next = next_of(rank); next != rank; next = next_of(next)) cycle.push_back(next);
    if (shortest.empty() || cycle.size() < shortest.size()) shortest = std::move(cycle);
  }
  return shortest;
}

// Breadth first from the ranks that the collective waits for, to one that waits in it.
std::vector<Rank> shortest_through(const StuckRanks& stuck, int collective) {
  std::map<Rank, Rank> waiter_of;  // of each rank that was found: who waits for it
  std::set<int> expanded = {collective};
  std::deque<Rank> queue;
  const auto find = [&](Rank rank, Rank waiter) {
    if (waiter_of.try_emplace(rank, waiter).second) queue.push_back(rank);
  };
  for (const Rank rank : stuck.absent[as_index(collective)]) find(rank, StuckRanks::kNone);
  for (; !queue.empty(); queue.pop_front()) {
    const Rank rank = queue.front();
    const int own = stuck.collective[as_index(rank)];
    if (own == collective) {
      std::vector<Rank> cycle;
      for (Rank at = rank; at != StuckRanks::kNone; at = waiter_of.at(at)) cycle.push_back(at);
      std::reverse(cycle.begin(), cycle.end());
      return cycle;
    }
    const Rank one = stuck.awaited[as_index(rank)];
    if (one != StuckRanks::kNone) find(one, rank);
    if (own == StuckRanks::kNone || !expanded.insert(own).second) continue;
    for (const Rank other : stuck.absent[as_index(own)]) find(other, rank);
  }
  return {};
}

}  // namespace

std::vector<Rank> shortest_cycle(const StuckRanks& stuck) {
  std::vector<Rank> shortest = shortest_of_single_waits(stuck);
  std::set<int> waited_in(stuck.collective.begin(), stuck.collective.end());
  waited_in.erase(StuckRanks::kNone);
  for (const int collective : waited_in) {
    std::vector<Rank> cycle = shortest_through(stuck, collective);
    if (cycle.empty() || (!shortest.empty() && shortest.size() <= cycle.size())) continue;
    shortest = std::move(cycle);
  }
  std::rotate(shortest.begin(), std::min_element(shortest.begin(), shortest.end()), shortest.end());
  return shortest;
}

}  // namespace pipert

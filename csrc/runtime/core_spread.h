// CoreSpread: keeps the ranks of one process on cores of their own while they run.
//
// Linux may wake a rank on the core of the rank that woke it while another core is idle, and leaves
// it there for as long as a short step takes: the two then run one after the other. So each rank
// notes the core it is on, and one that finds itself on another's moves to where none of them is.
// It is free to be moved again: nothing stays pinned, and what the caller pinned stays where it is.
//
// Any thread may use it, each for a rank of its own.
#pragma once

#include <atomic>
#include <vector>

namespace pipert {

class CoreSpread {
 public:
  // Does nothing where there is one rank alone, or fewer cores than ranks, or no way to tell.
  explicit CoreSpread(int num_ranks);

  // The calling thread, which runs that rank, begins to work: cheap where it is alone on its core.
  void enter(int rank);
  // It doesn't work any more. (One that waits within a pass keeps its core: it comes back there.)
  void leave(int rank);
  // Where that rank was last seen to work.
  static constexpr int kNone = -1;
  int core(int rank) const;

 private:
  bool is_taken(int core, int rank) const;
  void move(int rank) const;

  std::vector<std::atomic<int>> cores_;  // by rank; empty: nothing to do
};

}  // namespace pipert

// CoreSpread: keeps the ranks of one host on cores of their own while they run.
//
// Linux may wake a rank on the core of the rank that woke it while another core is idle, and leaves
// it there for as long as a short step takes: the two then run one after the other. So each rank
// notes the core it is on, and one that finds itself on another's moves to where none of them is.
// It is free to be moved again: nothing stays pinned, and what the caller pinned stays where it is.
//
// Any thread may use it, each for a rank of its own.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

namespace pipert {

class CoreSpread {
 public:
  static constexpr int kNone = -1;

  // For the ranks of one process. Does nothing where there is one alone, or fewer cores than ranks,
  // or no way to tell.
  explicit CoreSpread(int num_ranks);
  // For ranks of several processes. `cores`: by rank, kNone at first, in memory that they share;
  // `first`: of those of this process.
  CoreSpread(std::vector<std::shared_ptr<std::atomic<int>>> cores, int first);

  // `seat`: counts the ranks of this process.
  // The calling thread, which runs that rank, begins to work: cheap where it is alone on its core.
  void enter(int seat);
  // It doesn't work any more. (One that waits within a pass keeps its core: it comes back there.)
  void leave(int seat);
  // Where that rank was last seen to work.
  int core(int seat) const;

 private:
  std::atomic<int>& core_of(int seat) const {
    return *cores_[static_cast<std::size_t>(first_ + seat)];
  }
  bool is_taken(int core, int seat) const;
  void move(int seat) const;

  std::vector<std::shared_ptr<std::atomic<int>>> cores_;  // by rank; empty: nothing to do
  int first_;
};

}  // namespace pipert

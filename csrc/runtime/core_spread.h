// CoreSpread: gives the ranks of one process a core each to begin a pass on.
//
// Linux may wake two ranks on one core while another is idle, and leaves them there for as long as
// a short step takes: they then run one after the other. A rank that finds itself on another rank's
// core moves, and is free to be moved again. Immutable; any thread may use it.
#pragma once

#include <vector>

namespace pipert {

class CoreSpread {
 public:
  // For `num_ranks` of this process. Does nothing where there is one rank alone, or fewer cores
  // than ranks, or no way to tell.
  explicit CoreSpread(int num_ranks);

  // The calling thread, of that rank, begins a pass.
  void enter(int rank) const;

 private:
  std::vector<int> cores_;  // by rank; empty: nothing to do
};

}  // namespace pipert

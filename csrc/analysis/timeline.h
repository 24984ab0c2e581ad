// Timeline: when each compute action of each rank ran, or would run. A plain value: simulate()
// makes one from costs, a trace makes one from what really happened.
#pragma once

#include <vector>

#include "ir/action.h"

namespace pipert {

struct Span {
  Rank rank = 0;
  Action action;
  double start = 0.0;
  double end = 0.0;
  friend bool operator==(const Span&, const Span&) = default;
};

// Times in one unit throughout (the Python face uses seconds).
struct Timeline {
  std::vector<std::vector<Span>> ranks;  // by rank, in order
  double makespan = 0.0;                 // first start on any rank to last end on any
  std::vector<double> spans;             // by rank: its first start to its last end
  std::vector<double> busy;              // by rank: sum of its compute
  std::vector<double> bubble;            // by rank: 1 - busy / makespan
  std::vector<int>
      peak_memory;  // by rank: activations (of one stage for one microbatch) alive at once
  std::vector<Span> critical_path;  // first to last; empty if it is not known
};

// Fills everything but critical_path. `ranks`: by rank, in order, compute actions alone and no
// overlapped pairs. An activation is alive from the start of its F to the end of its B, or of its W
// if B is split; without any backward only while its F runs. Throws ValueError for a span that ends
// before it starts, or is not finite.
Timeline make_timeline(std::vector<std::vector<Span>> ranks);

}  // namespace pipert

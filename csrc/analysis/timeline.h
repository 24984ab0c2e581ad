// Timeline: when each action of each rank ran, or would run. A plain value: simulate() makes one
// from costs, a trace makes one from what really happened.
#pragma once

#include <vector>

#include "analysis/action_index.h"
#include "base/index.h"
#include "ir/action.h"

namespace pipert {

// One action of a rank, as small as can be: there are millions.
struct Span {
  Action action;
  double start = 0.0;
  double end = 0.0;
  friend bool operator==(const Span&, const Span&) = default;
};
static_assert(sizeof(Span) == 48);

// What went from one rank to another. Its places are those of spans: the `position`-th of the rank.
struct MessageSpan {
  Place sender;          // made it
  Place reader;          // needs it
  double sent = 0.0;     // when it was ready to leave; blocking: when both ranks had come to it
  double begun = 0.0;    // when its link took it up
  double arrived = 0.0;  // at the reader's rank
  Place ahead;           // the sender of the message that it queued behind; none if it didn't
  Rank ahead_to = -1;    // and where that one went
};

// Times in one unit throughout (the Python face uses seconds).
struct Timeline {
  // By rank, in order: F, B, I, W and R, and whatever else took time but transfers.
  std::vector<std::vector<Span>> ranks;
  double makespan = 0.0;            // first start on any rank to last end on any
  std::vector<double> spans;        // by rank: its first start to its last end
  std::vector<double> busy;         // by rank: what its spans take together
  std::vector<double> bubble;       // by rank: 1 - busy / makespan
  std::vector<double> span_bubble;  // by rank: 1 - busy / its own span
  // By rank: activations (of one stage for one microbatch) alive at once.
  std::vector<int> peak_memory;
  std::vector<double> peak_bytes;    // by rank, likewise in bytes; empty if they are not known
  std::vector<Place> critical_path;  // of spans, first to last; empty if it is not known
  // By reader's rank, then by position; of several that one span reads that comes first which was
  // waited for. Empty if they were not kept (messages_of then knows what
  // the spans tell).
  std::vector<MessageSpan> messages;
  bool is_simulated = false;  // or measured: then nobody knows all reasons
  bool is_blocking = false;   // a message holds up both of its ranks
};

// REQUIRES a place of the timeline.
inline const Span& span_at(const Timeline& timeline, Place place) {
  return timeline.ranks[as_index(place.rank)][as_index(place.position)];
}

// Fills all that spans tell. `ranks`: by rank, in order, no transfers and no overlapped pairs. An
// activation is alive from the start of its F to the end of its B, or of its W if B is split;
// without any backward only while its F runs. Throws ValueError for a span that ends before it
// starts, or is not finite.
Timeline make_timeline(std::vector<std::vector<Span>> ranks);

// The first start on any rank; 0 for an empty timeline.
double first_start(const Timeline& timeline);

}  // namespace pipert

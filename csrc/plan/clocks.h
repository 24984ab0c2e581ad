// Clocks: which Runs of other ranks have surely started when a Run starts. Immutable; any number of
// threads may read it.
//
// Note [What a sender may conclude]
//
// A sender isn't told when its message is read, and needn't be: what it receives tells. If a Run of
// mine reads a result of rank q that q made in or after the Run that reads my message, then q has
// my message when that Run of mine starts, and the buffer that I sent from is free. So each Run has
// a vector clock: for each other rank, how many of its Runs have surely started when this one
// starts. A Run inherits the clock of the Run before it on its rank; reading a message, it takes
// over what the message's producer knew, and that the producer itself has started. The first Run
// whose clock covers the reader is where the message is released (Release in program.h), without
// waiting for anything.
//
// Full clocks cost ranks x Runs. So in a pipeline of more than kTrackAll ranks each rank tracks
// those alone with which it exchanges messages, the only ones that it ever releases a message of,
// and rank 0. A message passes on what both of its ends track. What this forgets is what a rank
// hears of its neighbour through a chain of others. Where stages are dealt out in a loop there is
// one such chain, the long way round, and it passes rank 0: so each Run also has the first Run of
// rank 0 that surely starts after it, and a reader has surely started where the clock's entry for
// rank 0 covers that one. For all named schedules that gives what full clocks would; for other
// placements never more than they. A clock that is too small makes a sender release a message
// later, never too soon: in training every activation is answered by a gradient on the way back, so
// that it is known to have arrived one exchange later at the latest. Time and memory are
// O(Runs x tracked ranks): about three for the usual placements.
#pragma once

#include <span>
#include <vector>

#include "plan/dataflow.h"

namespace pipert {

// Up to so many ranks, each tracks all.
inline constexpr int kTrackAll = 16;

class Clocks {
 public:
  // `track_all`: the largest number of ranks of which each tracks all.
  explicit Clocks(const Dataflow& dataflow, int track_all = kTrackAll);

  // The first Run of `producer.rank` after `producer` that can only start once `consumer` has
  // started; the number of Runs of that rank if there is none that it knows of. REQUIRES
  // `consumer`, on another rank, to read the result of `producer`.
  int known_received(Place producer, Place consumer) const;

 private:
  struct RankClocks {
    std::vector<Rank> tracked;  // ascending
    std::vector<int> started;   // shape (Runs, tracked.size()), row by row
  };

  void track(const Dataflow& dataflow);
  void fill(const Dataflow& dataflow);
  void find_heard(const Dataflow& dataflow);
  void inherit(Place run);
  void learn_from(Place producer, Place run);
  std::span<int> row(Place run);

  bool tracks_all_ = true;
  std::vector<RankClocks> ranks_;  // by rank
  // By rank, then by Run: the first Run of rank 0 that surely starts after this one has. Empty if
  // each rank tracks all.
  std::vector<std::vector<int>> heard_;
};

}  // namespace pipert

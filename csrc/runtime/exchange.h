// Exchange: what the processes that hold the same state tell each other at the end of a pass, over
// channels of their own, before all agree that it is over.
//
// Owned by the runtime. What begins one, and finish(), are the caller's, while no rank runs; run()
// is the rank's thread's; abort() and the rest any thread's.
#pragma once

#include <string>
#include <utility>

#include "runtime/peer_channels.h"

namespace pipert {

enum class ExchangeKind : std::uint8_t {
  kWeights,     // instead of a pass: all take over the values of one
  kTraining,    // after a pass that trains
  kEvaluation,  // after one that doesn't
};

class Exchange {
 public:
  explicit Exchange(PeerChannels channels) : channels_(std::move(channels)) {}
  virtual ~Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // After the rank's Program, on its compute lane. False if it was aborted. Throws ValueError where
  // what the processes hold doesn't fit.
  virtual bool run(Lane& lane) = 0;
  // After the pass. Gradients that were put aside and not used come back.
  virtual void finish() = 0;
  // "rank 3, which has the other copy of stage 1": what it waits for when it waits.
  virtual std::string awaited() const = 0;
  // "exchanged the gradients of stage 1 with rank 3": the step at hand.
  virtual std::string doing() const = 0;

  const Progress& progress() const { return channels_.progress(); }
  void abort() noexcept { channels_.abort(); }
  bool reset() noexcept { return channels_.reset(); }

 protected:
  PeerChannels& channels() { return channels_; }

 private:
  PeerChannels channels_;
};

}  // namespace pipert

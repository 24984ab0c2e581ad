// PeerChannels: the channels between this process and those that it exchanges state with, each way.
//
// Owned by an Exchange, whose thread rules hold here too.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/progress.h"
#include "transport/channel.h"

namespace pipert {

class PeerChannels {
 public:
  // The channels to one other process.
  struct Ends {
    std::unique_ptr<Sender> sender;
    std::unique_ptr<Receiver> receiver;
  };
  // How many messages of a pass go to a process, and come from it.
  struct Counts {
    int sent = 0;
    int taken = 0;
  };

  explicit PeerChannels(std::map<Rank, Ends> ends);

  // Before a pass. `counts`: by process; of those that aren't named, none.
  void begin(std::int64_t epoch, bool training, const std::map<Rank, Counts>& counts);
  // Sends what is about `stage`. It waits only where the peer hasn't taken the message two before;
  // false if that was aborted.
  bool send(Rank peer, StageIndex stage, std::vector<at::Tensor> tensors, Lane& lane);
  // Waits for the peer's next message, which must be about `stage`. Nothing if it was aborted.
  std::optional<std::vector<at::Tensor>> take(Rank peer, StageIndex stage, Lane& lane);
  // Waits until all peers have what was sent. False if it was aborted.
  bool release_all();

  // Of this rank, in all these waits.
  Progress& progress() { return *progress_; }
  const Progress& progress() const { return *progress_; }
  void abort() noexcept;
  bool reset() noexcept;

 private:
  struct Peer {
    Ends ends;
    int num_sent = 0;
    int num_taken = 0;
  };

  std::map<Rank, Peer> peers_;
  std::int64_t epoch_ = 0;
  bool training_ = true;
  std::unique_ptr<Progress> progress_ = std::make_unique<Progress>();  // atomics don't move
};

}  // namespace pipert

// EmulatedNetwork: lets messages between ranks of one process take the time that a network would.
//
// For measuring: what a schedule makes of slow links can be seen without them, under the very model
// that simulate() has (Note [Messages on a link] in analysis/network.h), with seconds and the bytes
// that the messages really have. A message is there when the real channel has it and its time is
// up; nobody but its receiver waits. Times are the host's.
//
// Shared by the channels that it delays; any rank's thread may use it.
#pragma once

#include <memory>
#include <mutex>

#include "analysis/costs.h"
#include "analysis/network.h"
#include "transport/channel.h"

namespace pipert {

class EmulatedNetwork {
 public:
  // Of `costs` it takes latency, bandwidth and links. REQUIRES that they fit the schedule.
  EmulatedNetwork(Costs costs, int num_ranks);

  // Seconds of the monotonic clock at which a message that leaves now arrives.
  double arrival(const Edge& edge, const Message& message);

 private:
  const Costs costs_;
  std::mutex mutex_;
  Network network_;
};

// Puts the network between the two ends of an edge, which do the work.
void delay(std::shared_ptr<EmulatedNetwork> network, const Edge& edge,
           std::unique_ptr<Sender>& sender, std::unique_ptr<Receiver>& receiver);

}  // namespace pipert

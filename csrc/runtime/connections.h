// Connections: the channels between the ranks of a pipeline, as one process sees them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/slot_layout.h"
#include "plan/program.h"
#include "runtime/copy_exchange.h"
#include "runtime/decode.h"
#include "runtime/emulated_network.h"
#include "runtime/tied_exchange.h"
#include "transport/agreement.h"
#include "transport/failure_board.h"

namespace pipert {

struct RankSpec {
  RankResources resources;
  Program training;
  Program evaluation;
  c10::Device device{c10::kCPU};
};

// This process's ends of the channels that leave it. Null and empty where all ranks are here.
struct ExternalChannels {
  std::map<Edge, std::unique_ptr<Sender>> senders;
  std::map<Edge, std::unique_ptr<Receiver>> receivers;
  std::unique_ptr<CopyExchange> copies;  // null where no stage has its other copy elsewhere
  std::unique_ptr<TiedExchange> ties;    // null where no parameter is used elsewhere too
  std::unique_ptr<Agreement> agreement;
  std::unique_ptr<FailureBoard> board;
  // CoreSpread's, by rank, where all ranks share memory; else empty.
  std::vector<std::shared_ptr<std::atomic<int>>> cores;
};

struct ChannelOptions {
  int spin_us = 0;  // how long a receiver looks for a message before it sleeps
  std::shared_ptr<EmulatedNetwork> network;    // null: a message arrives as soon as it can
  std::optional<kernels::Format> compression;  // of all edges; none: messages travel as they are
};

// Gives each of `ranks` its ends of its edges: local channels between those that are here, and
// `external` ones, which are taken out. InternalError for an edge without a channel.
void connect(std::vector<RankSpec>& ranks, ExternalChannels& external,
             const ChannelOptions& options);

}  // namespace pipert

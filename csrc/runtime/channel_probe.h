// The channels between two processes by themselves, timed: for benchmarks alone.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

#include "runtime/connections.h"

namespace pipert {

struct ProbeOptions {
  Edge there;                  // from the process that times to the one that answers
  Edge back;                   // the other way round
  std::int64_t num_bytes = 0;  // of the one tensor of a message, a multiple of 4
  int num_messages = 0;
  std::int64_t epoch = 0;  // counts these calls, the same on both ends
  bool reads = false;      // who gets a message looks at each of its cache lines; not on a GPU
  c10::Device device{c10::kCPU};  // of the tensors
  int num_slots = 2;              // messages that may be on their way
};

// Sends a message and waits for the answer, again and again; seconds of each round trip. Empty on
// the end that answers, which calls it too.
std::vector<double> time_echoes(ExternalChannels& channels, bool times,
                                const ProbeOptions& options);

// Seconds of each of so many sends, one from each slot, which wait for nothing: what they take the
// host. Then, when all have returned, on the other end, of each take.
std::vector<double> time_sends(ExternalChannels& channels, const ProbeOptions& options);
std::vector<double> time_takes(ExternalChannels& channels, const ProbeOptions& options);

// Sends messages behind each other, two of them on their way; seconds until the last one is there.
// The end that `times` sends, the other one takes.
double time_stream(ExternalChannels& channels, bool times, const ProbeOptions& options);

// Seconds of each of so many memcpys of one buffer, into so many others by turns; all were used
// before.
std::vector<double> time_copies(std::int64_t num_bytes, int count, int num_destinations);

}  // namespace pipert

#include "runtime/channel_probe.h"

#include <ATen/ops/ones.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "device/lane.h"
#include "runtime/trace.h"

namespace pipert {
namespace {

double seconds_since(std::int64_t start_ns) {
  return static_cast<double>(now_ns() - start_ns) * 1e-9;
}

// This end of both edges, for one call.
class Probe {
 public:
  Probe(ExternalChannels& channels, bool times, const ProbeOptions& options)
      : sender_(*channels.senders.at(times ? options.there : options.back)),
        receiver_(*channels.receivers.at(times ? options.back : options.there)),
        epoch_(options.epoch),
        reads_(options.reads),
        num_slots_(options.num_slots),
        tensor_(at::ones({options.num_bytes / 4}, options.device)),
        lane_(current_lane(options.device)) {
    const ChannelPass pass{.epoch = epoch_, .training = true, .num_messages = options.num_messages};
    sender_.begin(pass);
    receiver_.begin(pass);
  }

  void send(int sequence) {
    if (sequence >= num_slots_) release(sequence - num_slots_);
    Message message;
    message.key = {MessageKind::kActivation, 0, sequence};
    message.epoch = epoch_;
    message.tensors = {tensor_};
    message.requires_grad = {false};
    sender_.send(sequence, sequence % num_slots_, std::move(message), *lane_);
    num_sent_ = sequence + 1;
  }
  // REQUIRES post() before.
  void take(int sequence) {
    const auto message = receiver_.take(sequence, sequence % num_slots_, *lane_);
    if (!message.has_value()) throw InternalError("a probe's channel was aborted");
    check_arrival(*message, {MessageKind::kActivation, 0, sequence}, epoch_, true);
    if (reads_) look_at(message->tensors.front());
  }
  void post(int sequence) { receiver_.post(sequence, sequence % num_slots_); }
  // Until what was taken is there.
  void synchronize() {
    const c10::Device device = tensor_.device();
    if (!device.is_cpu())
      c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  }
  void release_rest() {
    for (int sequence = std::max(0, num_sent_ - num_slots_); sequence < num_sent_; ++sequence)
      release(sequence);
  }

 private:
  // One word of each cache line, as a stage would at least.
  static void look_at(const at::Tensor& tensor) {
    constexpr std::int64_t kStep = 16;
    const auto* words = tensor.const_data_ptr<float>();
    std::array<float, 4> sums{};  // several: one would wait for its own addition
    const std::int64_t count = tensor.numel();
    for (std::int64_t i = 0; i < count; i += kStep)
      sums[static_cast<std::size_t>(i / kStep % 4)] += words[i];
    asm volatile("" : : "m"(sums) : "memory");  // or the loop would be left out
  }

  void release(int sequence) {
    if (!sender_.release(sequence, sequence % num_slots_))
      throw InternalError("a probe's channel was aborted");
  }

  Sender& sender_;
  Receiver& receiver_;
  std::int64_t epoch_;
  bool reads_;
  int num_slots_;
  at::Tensor tensor_;
  std::unique_ptr<Lane> lane_;
  int num_sent_ = 0;
};

}  // namespace

std::vector<double> time_echoes(ExternalChannels& channels, bool times,
                                const ProbeOptions& options) {
  Probe probe(channels, times, options);
  std::vector<double> seconds;
  for (int i = 0; i < options.num_messages; ++i) {
    probe.post(i);
    const std::int64_t start = now_ns();
    if (times) probe.send(i);
    probe.take(i);
    if (!times) probe.send(i);
    if (times) probe.synchronize();
    if (times) seconds.push_back(seconds_since(start));
  }
  probe.release_rest();
  return seconds;
}

std::vector<double> time_sends(ExternalChannels& channels, const ProbeOptions& options) {
  Probe probe(channels, true, options);
  probe.synchronize();
  std::vector<double> seconds;
  for (int i = 0; i < options.num_messages; ++i) {
    const std::int64_t start = now_ns();
    probe.send(i);
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

std::vector<double> time_takes(ExternalChannels& channels, const ProbeOptions& options) {
  Probe probe(channels, false, options);
  probe.synchronize();
  std::vector<double> seconds;
  for (int i = 0; i < options.num_messages; ++i) {
    probe.post(i);
    const std::int64_t start = now_ns();
    probe.take(i);
    seconds.push_back(seconds_since(start));
  }
  probe.synchronize();
  return seconds;
}

double time_stream(ExternalChannels& channels, bool times, const ProbeOptions& options) {
  Probe probe(channels, times, options);
  const std::int64_t start = now_ns();
  if (times) {
    for (int i = 0; i < options.num_messages; ++i) probe.send(i);
    probe.release_rest();
  } else {
    probe.post(0);
    for (int i = 0; i < options.num_messages; ++i) {
      if (i + 1 < options.num_messages) probe.post(i + 1);
      probe.take(i);
    }
    probe.synchronize();
  }
  return seconds_since(start);
}

std::vector<double> time_copies(std::int64_t num_bytes, int count, int num_destinations) {
  const auto options = at::TensorOptions().dtype(at::kByte);
  // Not zeros, whose pages would all be the same one.
  const at::Tensor source = at::ones({num_bytes}, options);
  std::vector<at::Tensor> destinations;
  for (int i = 0; i < num_destinations; ++i) destinations.push_back(at::ones({num_bytes}, options));
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    const at::Tensor& destination = destinations[static_cast<std::size_t>(i % num_destinations)];
    const std::int64_t start = now_ns();
    std::memcpy(destination.mutable_data_ptr(), source.const_data_ptr(),
                static_cast<std::size_t>(num_bytes));
    asm volatile("" : : "r"(destination.const_data_ptr()) : "memory");  // or it would be left out
    seconds.push_back(seconds_since(start));
  }
  return seconds;
}

}  // namespace pipert

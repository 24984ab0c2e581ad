#include "transport/shm_channel.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/Allocator.h>

#include <map>
#include <utility>

#include "base/error.h"
#include "shm/courier.h"
#include "shm/ring_reader.h"
#include "shm/ring_writer.h"
#include "transport/frame.h"
#include "transport/frame_buffers.h"

namespace pipert {
namespace {

class ShmSender final : public Sender {
 public:
  ShmSender(std::shared_ptr<Segment> segment, std::chrono::microseconds spin)
      : ring_(std::move(segment), spin) {}
  ~ShmSender() override { ring_.abort(); }  // before the courier is joined

  void begin(const ChannelPass& /*pass*/) override {
    if (!courier_.is_busy()) ring_.begin_pass();
  }

  void send(int /*sequence*/, int slot, Message message, Lane& /*lane*/) override {
    const FrameWriter frame(std::move(message));
    if (!frame.beside().empty()) {
      throw ValueError(concat("a stage returned a tensor on ",
                              frame.beside().front().device().str(),
                              ", but this edge has the shm channel, which carries tensors of the "
                              "CPU: expected transport='process_group'"));
    }
    const auto size = static_cast<std::size_t>(frame.num_bytes());
    sent_from_[slot] = ++num_sent_;
    const auto fill = [&](char* destination, const RingWriter::Progress& on_progress) {
      frame.write(destination, on_progress);
    };
    if (!courier_.is_busy() && ring_.try_write(size, fill)) return;
    Courier::Parcel parcel{std::make_unique_for_overwrite<char[]>(size), size};
    frame.write(parcel.bytes.get());
    courier_.bring(std::move(parcel));
  }

  bool release(int /*sequence*/, int slot) override {
    return ring_.wait_until_taken(sent_from_[slot]);
  }

  void abort() noexcept override { ring_.abort(); }
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "shm"; }

 private:
  RingWriter ring_;
  Courier courier_{ring_};
  std::uint64_t num_sent_ = 0;
  std::map<int, std::uint64_t> sent_from_;  // by slot: the number of its last message, from 1
};

// To whoever counts the thread's memory: who has borrowed it has it.
void report(char* memory, std::int64_t change) {
  if (!c10::memoryProfilingEnabled()) return;
  c10::reportMemoryUsageToProfiler(memory, change, 0, 0, c10::Device(c10::kCPU));
}

// uint8 of shape (num_bytes,), on the CPU: `bytes` where they lie.
at::Tensor as_frame(std::shared_ptr<char> bytes, std::int64_t num_bytes) {
  char* const data = bytes.get();
  report(data, num_bytes);
  return at::from_blob(
      data, {num_bytes},
      [bytes = std::move(bytes), num_bytes](void*) { report(bytes.get(), -num_bytes); },
      at::TensorOptions().dtype(at::kByte));
}

class ShmReceiver final : public Receiver {
 public:
  ShmReceiver(std::shared_ptr<Segment> segment, std::chrono::microseconds spin)
      : ring_(std::move(segment), spin) {}

  void begin(const ChannelPass& /*pass*/) override {
    next_sequence_ = 0;
    early_.clear();
    buffers_.begin_pass();
  }

  void post(int /*sequence*/, int /*slot*/) override {}

  std::optional<Message> take(int sequence, int /*slot*/, Lane& /*lane*/) override {
    if (auto early = early_.extract(sequence)) return std::move(early.mapped());
    while (true) {  // messages that are read later than they were sent are put aside
      std::optional<Message> message = receive();
      const int arrived = next_sequence_++;
      if (!message.has_value() || arrived == sequence) return message;
      early_[arrived] = std::move(*message);
    }
  }

  void abort() noexcept override { ring_.abort(); }
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "shm"; }

 private:
  std::optional<Message> receive() {
    const auto size = ring_.wait_for_message();
    if (!size.has_value()) return std::nullopt;
    const auto num_bytes = static_cast<std::int64_t>(*size);
    std::vector<std::size_t> beside;
    if (std::shared_ptr<char> lent = ring_.borrow())
      return read_frame(as_frame(std::move(lent), num_bytes), c10::Device(c10::kCPU), beside);
    const at::Tensor frame = buffers_.take(num_bytes);
    if (!ring_.read(static_cast<char*>(frame.mutable_data_ptr()))) return std::nullopt;
    return read_frame(frame, c10::Device(c10::kCPU), beside);
  }

  RingReader ring_;
  FrameBuffers buffers_;
  int next_sequence_ = 0;         // in this pass
  std::map<int, Message> early_;  // by sequence
};

}  // namespace

std::unique_ptr<Sender> make_shm_sender(std::shared_ptr<Segment> segment,
                                        std::chrono::microseconds spin) {
  return std::make_unique<ShmSender>(std::move(segment), spin);
}

std::unique_ptr<Receiver> make_shm_receiver(std::shared_ptr<Segment> segment,
                                            std::chrono::microseconds spin) {
  return std::make_unique<ShmReceiver>(std::move(segment), spin);
}

}  // namespace pipert

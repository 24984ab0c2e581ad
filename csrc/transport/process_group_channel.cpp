#include "transport/process_group_channel.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "transport/frame.h"
#include "transport/process_group_works.h"

namespace pipert {
namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

constexpr int kFrameTag = 0;
constexpr int kRestTag = 1;  // plus the sequence: what is sent first may be read last
constexpr std::int64_t kFirstCapacity = 4096;

// The other rank of a group of two.
int peer_of(const BackendPtr& backend) { return 1 - backend->getRank(); }

// As they lie in memory. NCCL takes contiguous tensors alone; a frame's are dense, in any order of
// their dimensions, which the frame tells.
at::Tensor elements_of(const at::Tensor& tensor) {
  return at::as_strided(tensor, {tensor.numel()}, {1}, tensor.storage_offset());
}

at::Tensor make_buffer(std::int64_t num_bytes) {
  return at::empty({num_bytes}, at::TensorOptions().dtype(at::kByte));
}

// How many bytes of each message travel in its first part; the same on both ends (Note [Frames and
// their sizes]).
class Capacity {
 public:
  void begin() {
    if (seen_ > 0) num_bytes_ = std::exchange(seen_, 0);
  }
  std::int64_t num_bytes() const { return num_bytes_; }
  void saw(std::int64_t num_bytes) { seen_ = std::max(seen_, num_bytes); }

 private:
  std::int64_t num_bytes_ = kFirstCapacity;
  std::int64_t seen_ = 0;  // the longest frame of the pass at hand
};

class ProcessGroupSender final : public Sender {
 public:
  ProcessGroupSender(BackendPtr cpu, BackendPtr accelerator)
      : cpu_(std::move(cpu)), accelerator_(std::move(accelerator)) {}

  void begin(const ChannelPass& /*pass*/) override { capacity_.begin(); }

  void send(int sequence, int slot, Message message, Lane& lane) override {
    FrameWriter writer(std::move(message));
    const std::int64_t size = writer.num_bytes();
    const std::int64_t head = std::min(size, capacity_.num_bytes());
    InTransit& transit = in_transit_[slot];
    transit.buffer = make_buffer(size);
    writer.write(static_cast<char*>(transit.buffer.data_ptr()));
    transit.works.push_back(start(cpu_, transit.buffer.narrow(0, 0, head), kFrameTag));
    if (size > head)
      transit.works.push_back(
          start(cpu_, transit.buffer.narrow(0, head, size - head), kRestTag + sequence));
    capacity_.saw(size);
    if (writer.beside().empty()) return;
    if (accelerator_ == nullptr) {
      throw ValueError(concat("a stage returned a tensor on ",
                              writer.beside().front().device().str(),
                              ", but the pipeline's group has no backend for that device"));
    }
    const auto current = lane.make_current();
    for (const at::Tensor& tensor : writer.beside()) {
      transit.beside.push_back(elements_of(tensor));
      transit.beside_works.push_back(start(accelerator_, transit.beside.back(), kFrameTag));
    }
  }

  bool release(int /*sequence*/, int slot) override {
    InTransit& transit = in_transit_[slot];
    bool delivered = true;
    for (const auto& work : transit.works) delivered = works_.wait(work) && delivered;
    for (const auto& work : transit.beside_works)
      delivered = works_.wait_on_stream(work) && delivered;
    transit.works.clear();
    transit.beside_works.clear();
    transit.beside.clear();
    if (delivered) transit.buffer.reset();  // else gloo may still read from it
    return delivered;
  }

  void abort() noexcept override { works_.abort(); }
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "process_group"; }

 private:
  struct InTransit {
    at::Tensor buffer;               // the frame
    std::vector<at::Tensor> beside;  // tensors that the device's backend reads from
    std::vector<PendingWorks::WorkPtr> works;
    std::vector<PendingWorks::WorkPtr> beside_works;
  };

  PendingWorks::WorkPtr start(const BackendPtr& backend, const at::Tensor& tensor, int tag) {
    std::vector<at::Tensor> tensors{tensor};
    return works_.start([&] { return backend->send(tensors, peer_of(backend), tag); });
  }

  BackendPtr cpu_;  // outlives the works and buffers below
  BackendPtr accelerator_;
  Capacity capacity_;
  std::map<int, InTransit> in_transit_;  // by slot
  PendingWorks works_;
};

class ProcessGroupReceiver final : public Receiver {
 public:
  ProcessGroupReceiver(BackendPtr cpu, BackendPtr accelerator, const c10::Device& device)
      : cpu_(std::move(cpu)), accelerator_(std::move(accelerator)), device_(device) {}

  void begin(const ChannelPass& /*pass*/) override {
    capacity_.begin();
    next_sequence_ = 0;
  }

  void post(int /*sequence*/, int slot) override {
    Posted& posted = posted_[slot];
    posted.buffer = make_buffer(capacity_.num_bytes());
    posted.work = receive(cpu_, posted.buffer, kFrameTag);
  }

  std::optional<Message> take(int sequence, int slot, Lane& lane) override {
    Posted& posted = posted_[slot];
    if (!works_.wait(std::exchange(posted.work, nullptr))) return std::nullopt;
    at::Tensor frame = std::exchange(posted.buffer, {});
    const auto* start = static_cast<const char*>(frame.const_data_ptr());
    const std::int64_t size = frame_num_bytes(start, frame.numel());
    if (size > frame.numel()) {
      at::Tensor whole = make_buffer(size);
      std::memcpy(whole.data_ptr(), frame.const_data_ptr(),
                  static_cast<std::size_t>(frame.numel()));
      rest_ = whole.narrow(0, frame.numel(), size - frame.numel());
      if (!works_.wait(receive(cpu_, rest_, kRestTag + sequence))) return std::nullopt;
      frame = std::move(whole);
    }
    capacity_.saw(size);
    std::vector<std::size_t> beside;
    const auto current = lane.make_current();  // the tensors beside are allocated for this lane
    Message message = read_frame(frame, device_, beside);
    const bool is_next = sequence == std::exchange(next_sequence_, sequence + 1);
    if (!beside.empty() && !is_next) {
      throw ValueError(
          "this schedule reads messages in another order than they are sent, which stages on an "
          "accelerator can't do yet between processes");
    }
    if (!beside.empty() && accelerator_ == nullptr) {
      throw ValueError(
          "a tensor on an accelerator arrived, but the pipeline's group has no backend for it");
    }
    for (const std::size_t index : beside) {
      if (!works_.wait_on_stream(
              receive(accelerator_, elements_of(message.tensors[index]), kFrameTag)))
        return std::nullopt;
    }
    return message;
  }

  void abort() noexcept override { works_.abort(); }
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "process_group"; }

 private:
  struct Posted {
    at::Tensor buffer;
    PendingWorks::WorkPtr work;
  };

  PendingWorks::WorkPtr receive(const BackendPtr& backend, const at::Tensor& tensor, int tag) {
    std::vector<at::Tensor> tensors{tensor};
    return works_.start([&] { return backend->recv(tensors, peer_of(backend), tag); });
  }

  BackendPtr cpu_;  // outlives the works and buffers below
  BackendPtr accelerator_;
  c10::Device device_;
  Capacity capacity_;
  int next_sequence_ = 0;         // if messages are read in the order in which they are sent
  at::Tensor rest_;               // a member: an aborted receive may still write into it
  std::map<int, Posted> posted_;  // by slot
  PendingWorks works_;
};

}  // namespace

std::unique_ptr<Sender> make_process_group_sender(BackendPtr cpu, BackendPtr accelerator) {
  return std::make_unique<ProcessGroupSender>(std::move(cpu), std::move(accelerator));
}

std::unique_ptr<Receiver> make_process_group_receiver(BackendPtr cpu, BackendPtr accelerator,
                                                      const c10::Device& device) {
  return std::make_unique<ProcessGroupReceiver>(std::move(cpu), std::move(accelerator), device);
}

}  // namespace pipert

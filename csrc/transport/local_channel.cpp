#include "transport/local_channel.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pipert {
namespace {

// Note [Who tells the allocator]
//
// A tensor's memory belongs to the lane it was allocated on: once it is freed, on whatever thread,
// that lane may use it again, and other lanes' reads of it may still be on their way. Marks order
// what is written before it is read; what is freed while it is read must be told to the allocator
// (Lane::adopt), or be shown to be safe:
//
// - A message between ranks on one device is the sender's own tensor. The receive lane only waits
//   for it, and touches nothing: it adopts nothing. The receiver's compute lane reads it, and its
//   thread frees it: adopted (Executor::fetch). Its sender's lane can't wait for that read instead
//   without holding the tensor until its Release, and with it the memory.
// - A message between devices is read by the copy, which lands on a lane of this end on the
//   sender's device. torch makes the receive lane wait for the copy, and the allocator marks a
//   freed block on each lane that adopted it: the receive lane's adoption covers the copy. The copy
//   is the receive lane's, and read by the compute lane: adopted there. The copy's lane itself owns
//   no memory.
// - To a CPU rank the copy is done when the call returns: nothing to adopt.
// - What the caller gives to a pass and takes from it (batch, losses, outputs, gradients) is read
//   on one side of the entry or exit mark of each rank (Executor::prepare, join), and freed, if on
//   this thread, on a side that comes after: the memory's own lane has waited for the reader.
// - Activations, and what actions hand to each other on one rank, stay on the compute lane.
//
// While a lane is captured into a graph the allocator keeps adopted memory until the capture ends:
// a step that is captured whole holds all messages of the step. Memory of runtime-owned slots
// (transports between processes) is adopted by nobody.

// The two ends share this; the last one to go frees it.
//
// One cell for each message of the pass, so a sender never waits. `state` counts the messages that
// are in (times two); its lowest bit says that the channel was aborted.
struct Mailbox {
  std::vector<Message> cells;
  alignas(64) std::atomic<std::uint32_t> state{0};

  static constexpr std::uint32_t kAborted = 1;
  static constexpr std::uint32_t kOneMessage = 2;

  void begin(const ChannelPass& pass) {
    cells.resize(static_cast<std::size_t>(pass.num_messages));
    state.store(0, std::memory_order_relaxed);
  }
  void abort() noexcept {
    state.fetch_or(kAborted);
    state.notify_all();
  }
  bool reset() noexcept {
    cells.clear();
    state.store(0);
    return true;
  }
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class LocalSender final : public Sender {
 public:
  explicit LocalSender(std::shared_ptr<Mailbox> mailbox) : mailbox_(std::move(mailbox)) {}

  void begin(const ChannelPass& pass) override { mailbox_->begin(pass); }

  void send(int sequence, int /*slot*/, Message message, Lane& lane) override {
    if (lane.is_asynchronous()) {
      message.ready = lane.make_mark();
      lane.record(*message.ready);
    }
    mailbox_->cells[static_cast<std::size_t>(sequence)] = std::move(message);
    mailbox_->state.fetch_add(Mailbox::kOneMessage, std::memory_order_release);
    mailbox_->state.notify_one();
  }

  // The tensors belong to the receiver as soon as they are sent.
  bool release(int /*sequence*/, int /*slot*/) override { return true; }
  void abort() noexcept override { mailbox_->abort(); }
  bool reset() noexcept override { return mailbox_->reset(); }
  std::string_view kind() const override { return "local"; }

 private:
  std::shared_ptr<Mailbox> mailbox_;
};

class LocalReceiver final : public Receiver {
 public:
  LocalReceiver(std::shared_ptr<Mailbox> mailbox, const c10::Device& device, int spin_us)
      : mailbox_(std::move(mailbox)), device_(device), spin_(spin_us) {}

  void begin(const ChannelPass& /*pass*/) override {}  // the sender's end does it for both
  void post(int /*sequence*/, int /*slot*/) override {}

  std::optional<Message> take(int sequence, int /*slot*/, Lane& lane) override {
    const auto wanted = static_cast<std::uint32_t>(sequence + 1) * Mailbox::kOneMessage;
    std::uint32_t state = poll(wanted);
    while (state < wanted && (state & Mailbox::kAborted) == 0) {
      mailbox_->state.wait(state, std::memory_order_acquire);
      state = mailbox_->state.load(std::memory_order_acquire);
    }
    if ((state & Mailbox::kAborted) != 0) return std::nullopt;
    Message message = std::move(mailbox_->cells[static_cast<std::size_t>(sequence)]);
    move_to_device(message, lane);
    return message;
  }

  void abort() noexcept override { mailbox_->abort(); }
  bool reset() noexcept override { return mailbox_->reset(); }
  std::string_view kind() const override { return "local"; }

 private:
  // Looks for a while before it gives the core away: a sleeping thread takes tens of microseconds
  // to come back.
  std::uint32_t poll(std::uint32_t wanted) const {
    std::uint32_t state = mailbox_->state.load(std::memory_order_acquire);
    if (state >= wanted || spin_.count() == 0) return state;
    const auto end = std::chrono::steady_clock::now() + spin_;
    while (state < wanted && (state & Mailbox::kAborted) == 0 &&
           std::chrono::steady_clock::now() < end) {
      for (int i = 0; i < 32; ++i) pause();
      std::this_thread::yield();  // the sender may be queued on this very core
      state = mailbox_->state.load(std::memory_order_acquire);
    }
    return state;
  }

  void move_to_device(Message& message, Lane& lane) {
    if (message.ready != nullptr && lane.is_asynchronous()) lane.wait(*message.ready);
    for (at::Tensor& tensor : message.tensors) {
      if (tensor.defined() && tensor.device() != device_) tensor = copy(tensor, message, lane);
    }
  }

  // See Note [Who tells the allocator].
  at::Tensor copy(const at::Tensor& tensor, const Message& message, Lane& lane) {
    const c10::Device source = tensor.device();
    std::unique_ptr<CurrentLane> there;
    if (!source.is_cpu()) {
      Lane& source_lane = lane_of(source);
      if (message.ready != nullptr) source_lane.wait(*message.ready);
      there = source_lane.make_current();
    }
    const auto here = lane.make_current();
    lane.adopt(tensor);
    return tensor.to(device_, /*non_blocking=*/!source.is_cpu() && lane.is_asynchronous());
  }

  // Of a sending device, for copies. Not this thread's own stream of it, where they would stand
  // behind the caller's work, and those of all edges behind each other.
  Lane& lane_of(const c10::Device& device) {
    auto& lane = source_lanes_[device];
    if (lane == nullptr) lane = make_lane(device, LanePriority::kTransfer);
    return *lane;
  }

  std::shared_ptr<Mailbox> mailbox_;
  c10::Device device_;
  std::chrono::microseconds spin_;
  std::unordered_map<c10::Device, std::unique_ptr<Lane>> source_lanes_;
};

}  // namespace

LocalChannel make_local_channel(const c10::Device& device, int spin_us) {
  auto mailbox = std::make_shared<Mailbox>();
  return {std::make_unique<LocalSender>(mailbox),
          std::make_unique<LocalReceiver>(mailbox, device, spin_us)};
}

}  // namespace pipert

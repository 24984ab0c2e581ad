#include "transport/local_channel.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace pipert {
namespace {

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

  void move_to_device(Message& message, Lane& lane) const {
    if (message.ready != nullptr && lane.is_asynchronous()) lane.wait(*message.ready);
    if (message.ready != nullptr && !lane.is_asynchronous()) {
      // The copies below run on the sending device, on this thread's stream of it.
      for (const at::Tensor& tensor : message.tensors) {
        if (!tensor.defined() || tensor.device().is_cpu()) continue;
        current_lane(tensor.device())->wait(*message.ready);
        break;  // all of one message are on the sender's device
      }
    }
    for (at::Tensor& tensor : message.tensors) {
      if (!tensor.defined()) continue;
      if (lane.is_asynchronous()) lane.adopt(tensor);
      if (tensor.device() != device_) {
        const auto current = lane.make_current();
        tensor = tensor.to(device_);
      }
    }
  }

  std::shared_ptr<Mailbox> mailbox_;
  c10::Device device_;
  std::chrono::microseconds spin_;
};

}  // namespace

LocalChannel make_local_channel(const c10::Device& device, int spin_us) {
  auto mailbox = std::make_shared<Mailbox>();
  return {std::make_unique<LocalSender>(mailbox),
          std::make_unique<LocalReceiver>(mailbox, device, spin_us)};
}

}  // namespace pipert

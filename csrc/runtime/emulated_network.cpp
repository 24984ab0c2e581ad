#include "runtime/emulated_network.h"

#include <chrono>
#include <condition_variable>
#include <thread>
#include <utility>
#include <vector>

#include "base/index.h"

namespace pipert {
namespace {

using Clock = std::chrono::steady_clock;

// A sleeping thread comes back up to so much late; the rest of the time it looks at the clock.
constexpr std::chrono::microseconds kOversleep{100};

// When each message of an edge arrives. The two ends share it; the last one to go frees it.
class Arrivals {
 public:
  void begin(int num_messages) {
    const std::lock_guard lock(mutex_);
    times_.assign(as_index(num_messages), Clock::time_point());
    aborted_ = false;
  }
  void set(int sequence, double seconds) {
    const auto since =
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    const std::lock_guard lock(mutex_);
    times_[as_index(sequence)] = Clock::time_point(since);
  }
  // REQUIRES that the message was sent. False if the channel was aborted.
  bool await(int sequence) {
    std::unique_lock lock(mutex_);
    const Clock::time_point time = times_[as_index(sequence)];
    if (changed_.wait_until(lock, time - kOversleep, [&] { return aborted_; })) return false;
    lock.unlock();
    while (Clock::now() < time) std::this_thread::yield();
    return true;
  }
  void set_aborted(bool aborted) noexcept {
    const std::lock_guard lock(mutex_);
    aborted_ = aborted;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Clock::time_point> times_;  // by sequence
  bool aborted_ = false;
};

class DelayedSender final : public Sender {
 public:
  DelayedSender(std::unique_ptr<Sender> inner, const Edge& edge,
                std::shared_ptr<EmulatedNetwork> network, std::shared_ptr<Arrivals> arrivals)
      : inner_(std::move(inner)),
        edge_(edge),
        network_(std::move(network)),
        arrivals_(std::move(arrivals)) {}

  void begin(const ChannelPass& pass) override {
    arrivals_->begin(pass.num_messages);
    inner_->begin(pass);
  }
  void send(int sequence, int slot, Message message, Lane& lane) override {
    arrivals_->set(sequence, network_->arrival(edge_, message));
    inner_->send(sequence, slot, std::move(message), lane);
  }
  bool release(int sequence, int slot) override { return inner_->release(sequence, slot); }
  void abort() noexcept override {
    arrivals_->set_aborted(true);
    inner_->abort();
  }
  bool reset() noexcept override {
    arrivals_->set_aborted(false);
    return inner_->reset();
  }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Sender> inner_;
  Edge edge_;
  std::shared_ptr<EmulatedNetwork> network_;
  std::shared_ptr<Arrivals> arrivals_;
};

class DelayedReceiver final : public Receiver {
 public:
  DelayedReceiver(std::unique_ptr<Receiver> inner, std::shared_ptr<Arrivals> arrivals)
      : inner_(std::move(inner)), arrivals_(std::move(arrivals)) {}

  void begin(const ChannelPass& pass) override { inner_->begin(pass); }
  void post(int sequence, int slot) override { inner_->post(sequence, slot); }
  std::optional<Message> take(int sequence, int slot, Lane& lane) override {
    auto message = inner_->take(sequence, slot, lane);
    if (message.has_value() && !arrivals_->await(sequence)) return std::nullopt;
    return message;
  }
  void abort() noexcept override {
    arrivals_->set_aborted(true);
    inner_->abort();
  }
  bool reset() noexcept override { return inner_->reset(); }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Receiver> inner_;
  std::shared_ptr<Arrivals> arrivals_;
};

}  // namespace

EmulatedNetwork::EmulatedNetwork(Costs costs, int num_ranks)
    : costs_(std::move(costs)), network_(costs_, num_ranks) {}

double EmulatedNetwork::arrival(const Edge& edge, const Message& message) {
  Parcel parcel;
  parcel.edge = edge;
  for (const at::Tensor& tensor : message.tensors) {
    if (tensor.defined()) parcel.bytes += static_cast<double>(tensor.nbytes());
  }
  const std::lock_guard lock(mutex_);  // so that links get their parcels in the order of time
  parcel.ready = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  return network_.send(parcel).arrived;
}

void delay(std::shared_ptr<EmulatedNetwork> network, const Edge& edge,
           std::unique_ptr<Sender>& sender, std::unique_ptr<Receiver>& receiver) {
  auto arrivals = std::make_shared<Arrivals>();
  sender = std::make_unique<DelayedSender>(std::move(sender), edge, std::move(network), arrivals);
  receiver = std::make_unique<DelayedReceiver>(std::move(receiver), std::move(arrivals));
}

}  // namespace pipert

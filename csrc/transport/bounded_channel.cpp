#include "transport/bounded_channel.h"

#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

// The two ends share this; the last one to go frees it.
class Credits {
 public:
  explicit Credits(int capacity) : capacity_(capacity) {}

  // Takes one for a message that is about to be sent, when there is one.
  void spend() {
    if (capacity_ == 0) return;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return aborted_ || num_untaken_ < capacity_; });
    require_not_aborted();
    ++num_untaken_;
  }
  // After the send: without capacity it isn't over before the message is taken.
  void settle() {
    if (capacity_ != 0) return;
    std::unique_lock lock(mutex_);
    ++num_untaken_;
    changed_.wait(lock, [&] { return aborted_ || num_untaken_ <= 0; });
    require_not_aborted();
  }
  void give_back() {
    const std::lock_guard lock(mutex_);
    --num_untaken_;
    changed_.notify_all();
  }
  void set(bool aborted) noexcept {
    const std::lock_guard lock(mutex_);
    aborted_ = aborted;
    num_untaken_ = 0;
    changed_.notify_all();
  }

 private:
  void require_not_aborted() const {
    if (aborted_) throw ValueError("the channel was aborted while a send waited for room");
  }

  int capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int num_untaken_ = 0;  // without capacity also -1: taken before the sender came to count it
  bool aborted_ = false;
};

class BoundedSender final : public Sender {
 public:
  BoundedSender(std::unique_ptr<Sender> inner, std::shared_ptr<Credits> credits)
      : inner_(std::move(inner)), credits_(std::move(credits)) {}

  void begin(const ChannelPass& pass) override {
    credits_->set(false);
    inner_->begin(pass);
  }
  void send(int sequence, int slot, Message message, Lane& lane) override {
    credits_->spend();
    inner_->send(sequence, slot, std::move(message), lane);
    credits_->settle();
  }
  bool release(int sequence, int slot) override { return inner_->release(sequence, slot); }
  void abort() noexcept override {
    credits_->set(true);
    inner_->abort();
  }
  bool reset() noexcept override {
    credits_->set(false);
    return inner_->reset();
  }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Sender> inner_;
  std::shared_ptr<Credits> credits_;
};

class BoundedReceiver final : public Receiver {
 public:
  BoundedReceiver(std::unique_ptr<Receiver> inner, std::shared_ptr<Credits> credits)
      : inner_(std::move(inner)), credits_(std::move(credits)) {}

  void begin(const ChannelPass& pass) override { inner_->begin(pass); }
  void post(int sequence, int slot) override { inner_->post(sequence, slot); }
  std::optional<Message> take(int sequence, int slot, Lane& lane) override {
    auto message = inner_->take(sequence, slot, lane);
    if (message.has_value()) credits_->give_back();
    return message;
  }
  void abort() noexcept override {
    credits_->set(true);
    inner_->abort();
  }
  bool reset() noexcept override { return inner_->reset(); }
  std::string_view kind() const override { return inner_->kind(); }

 private:
  std::unique_ptr<Receiver> inner_;
  std::shared_ptr<Credits> credits_;
};

}  // namespace

BoundedChannel bound_channel(std::unique_ptr<Sender> sender, std::unique_ptr<Receiver> receiver,
                             int capacity) {
  auto credits = std::make_shared<Credits>(capacity);
  return {std::make_unique<BoundedSender>(std::move(sender), credits),
          std::make_unique<BoundedReceiver>(std::move(receiver), credits)};
}

}  // namespace pipert

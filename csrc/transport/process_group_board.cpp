#include "transport/process_group_board.h"

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace pipert {
namespace {

constexpr const char* kKey = "failure";

// Note [The store is asked by a thread of its own]
//
// A question to the store has no time limit: if the process that serves it is frozen, or its
// network is cut, the question never ends. The caller who watches a pass must go on watching, for
// the time limit and Ctrl-C are his. So a thread asks; whoever wants the answer waits as long as he
// likes.
// What the board and its thread share; the last one to go frees it.
struct Desk {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<std::string> to_publish;
  std::optional<std::string> answer;
  int num_asked = 0;  // questions and publications, as are the answers
  int num_answered = 0;
  bool closed = false;
  c10::intrusive_ptr<c10d::Store> store;  // the thread's alone
};

void publish(c10d::Store& store, const std::string& text) {
  try {
    const std::vector<std::uint8_t> value(text.begin(), text.end());
    store.compareSet(kKey, {}, value);
  } catch (...) {  // see FailureBoard
  }
}

std::optional<std::string> ask(c10d::Store& store) {
  try {
    if (!store.check({kKey})) return std::nullopt;
    const auto value = store.get(kKey);
    return std::string(value.begin(), value.end());
  } catch (...) {
    return std::nullopt;
  }
}

void serve(Desk& desk) {
  std::unique_lock lock(desk.mutex);
  while (true) {
    desk.changed.wait(lock, [&] { return desk.closed || desk.num_asked > desk.num_answered; });
    if (desk.closed) return;
    const int number = desk.num_asked;
    const auto text = std::exchange(desk.to_publish, std::nullopt);
    lock.unlock();
    if (text.has_value()) publish(*desk.store, *text);
    auto answer = ask(*desk.store);
    lock.lock();
    if (answer.has_value()) desk.answer = std::move(answer);
    desk.num_answered = number;
    desk.changed.notify_all();
  }
}

class StoreBoard final : public FailureBoard {
 public:
  explicit StoreBoard(c10::intrusive_ptr<c10d::Store> store) : desk_(std::make_shared<Desk>()) {
    desk_->store = std::move(store);
    thread_ = std::thread([desk = desk_] { serve(*desk); });
  }

  ~StoreBoard() override {
    std::unique_lock lock(desk_->mutex);
    desk_->closed = true;
    desk_->changed.notify_all();
    const bool is_idle = desk_->num_answered == desk_->num_asked;
    lock.unlock();
    if (is_idle) {
      thread_.join();
    } else {  // it has what it needs, and ends when the store answers
      thread_.detach();
    }
  }

  void publish(const std::string& text, std::chrono::milliseconds patience) noexcept override {
    std::unique_lock lock(desk_->mutex);
    if (!desk_->to_publish.has_value()) desk_->to_publish = text;
    wait_for_answer(lock, patience);
  }

  std::optional<std::string> poll(std::chrono::milliseconds patience) noexcept override {
    std::unique_lock lock(desk_->mutex);
    wait_for_answer(lock, patience);
    return desk_->answer;
  }

 private:
  // An answer to a question that is asked now; one that is under way was asked too early.
  void wait_for_answer(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds patience) {
    const int number = ++desk_->num_asked;
    desk_->changed.notify_all();
    desk_->changed.wait_for(lock, patience, [&] { return desk_->num_answered >= number; });
  }

  std::shared_ptr<Desk> desk_;  // shared with the thread, which may outlive this
  std::thread thread_;
};

}  // namespace

std::unique_ptr<FailureBoard> make_process_group_board(c10::intrusive_ptr<c10d::Store> store) {
  return std::make_unique<StoreBoard>(std::move(store));
}

}  // namespace pipert

#include "ipc/wait_ender.h"

#include <chrono>

namespace pipert {
namespace {

constexpr std::uint32_t kFar = 1U << 30;  // past every number that anybody waits for
constexpr std::chrono::milliseconds kGlance{50};
constexpr std::chrono::milliseconds kRepeat{2};

}  // namespace

WaitEnder::WaitEnder(std::span<PushWord> words, std::uint32_t first_number, PushEnd& own,
                     const PushEnd& other)
    : words_(words), own_(own), other_(other), number_(first_number) {
  own_.process = this_process();
  own_.is_open.store(1);
  thread_ = std::thread([this] { run(); });
}

WaitEnder::~WaitEnder() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    changed_.notify_all();
  }
  thread_.join();
  own_.is_closed.store(1);
}

void WaitEnder::write() noexcept {
  for (PushWord& word : words_) word.number.store(number_.load() + kFar);
}

void WaitEnder::end_waits() noexcept {
  has_ended_.store(true);
  write();
  changed_.notify_all();
}

bool WaitEnder::is_other_gone() const {
  if (other_.is_open.load() == 0) return false;
  if (other_.is_closed.load() != 0) return other_.has_left_undone.load() != 0;
  return !is_running(other_.process);
}

void WaitEnder::run() {
  std::unique_lock lock(mutex_);
  while (!is_closed_) {
    if (!has_ended_.load() && is_other_gone()) has_ended_.store(true);
    if (has_ended_.load()) write();
    changed_.wait_for(lock, has_ended_.load() ? kRepeat : kGlance);
  }
}

}  // namespace pipert

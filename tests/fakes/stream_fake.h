// Streams and events of the fake CUDA: a stream is a thread, and what it is given a queue of
// functions.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "cuda/cuda_api.h"

namespace pipert::cuda_fake {

// An operation of any stream is delayed so long at most.
inline std::atomic<int> max_delay_us{50};

// Until every stream that this process has made has nothing to do.
void wait_for_all_streams();

// What an event stands for, once it was recorded.
struct Point {
  std::atomic<std::uint32_t> is_passed{0};
  std::chrono::steady_clock::time_point passed_at;  // before that is set
  cuda::Stream stream;                              // on which it is

  explicit Point(cuda::Stream stream) : stream(stream) {}
  void pass() {
    passed_at = std::chrono::steady_clock::now();
    is_passed.store(1);
    is_passed.notify_all();
  }
  void wait() const { is_passed.wait(0); }
};

}  // namespace pipert::cuda_fake

struct CUstream_st {
  CUstream_st(unsigned seed, int device, pipert::cuda::StreamPriority priority)
      : device(device), priority(priority), random(seed), thread([this] { run(); }) {}

  ~CUstream_st() {
    give([this] { closed = true; });
    thread.join();
  }

  // `num_early`: runs so many operations too early; at once, if these have begun.
  void give(std::function<void()> operation, int num_early = 0) {
    const std::lock_guard lock(mutex);
    const auto place = static_cast<std::ptrdiff_t>(operations.size()) - num_early;
    if (num_early > 0 && place < 1) return operation();
    operations.insert(operations.begin() + place, std::move(operation));
    changed.notify_all();
  }

  bool is_idle() {
    const std::lock_guard lock(mutex);
    return operations.empty();
  }

  void synchronize() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return operations.empty(); });
  }

  void run() {
    std::unique_lock lock(mutex);
    while (!closed) {
      changed.wait(lock, [this] { return !operations.empty(); });
      const std::function<void()> operation = std::move(operations.front());
      lock.unlock();
      delay();
      operation();
      lock.lock();
      operations.pop_front();
      changed.notify_all();
    }
  }

  void delay() {
    const int max_delay_us = pipert::cuda_fake::max_delay_us;
    if (max_delay_us == 0 || random() % 3 != 0) return;
    const auto us = random() % static_cast<unsigned>(max_delay_us);
    std::this_thread::sleep_for(std::chrono::microseconds(us));
  }

  const int device;
  const pipert::cuda::StreamPriority priority;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> operations;  // the first one runs
  bool closed = false;
  std::mt19937 random;
  std::thread thread;  // the last member: it uses the others
};

struct CUevent_st {
  const int device;
  const bool takes_time;
  std::mutex mutex;
  std::shared_ptr<pipert::cuda_fake::Point> last;  // null: never recorded

  std::shared_ptr<pipert::cuda_fake::Point> get_last() {
    const std::lock_guard lock(mutex);
    return last;
  }
};

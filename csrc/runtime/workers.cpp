#include "runtime/workers.h"

#include <utility>

namespace pipert {

Workers::Workers(int num_workers, WorkerHooks hooks) : hooks_(std::move(hooks)) {
  try {
    for (int worker = 0; worker < num_workers; ++worker)
      threads_.emplace_back([this, worker] { loop(worker); });
  } catch (...) {  // the system has no more threads to give
    stop();
    throw;
  }
}

Workers::~Workers() { stop(); }

void Workers::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::start(std::function<void(int)> task) {
  {
    const std::lock_guard lock(mutex_);
    task_ = std::move(task);
    num_running_ = static_cast<int>(threads_.size());
    ++generation_;
  }
  work_.notify_all();
}

bool Workers::wait(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return done_.wait_for(lock, limit, [this] { return num_running_ == 0; });
}

void Workers::loop(int worker) {
  if (hooks_.on_start) hooks_.on_start(worker);
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (generation_ == seen) break;  // stopping, and nothing left to do
    seen = generation_;
    lock.unlock();
    task_(worker);
    lock.lock();
    if (--num_running_ == 0) {
      task_ = nullptr;  // it may hold what the caller would like to see freed
      done_.notify_all();
    }
  }
  lock.unlock();
  if (hooks_.on_exit) hooks_.on_exit(worker);
}

}  // namespace pipert

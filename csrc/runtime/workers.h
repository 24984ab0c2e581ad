// Workers: one thread for each local rank, started once and kept. The caller hands out a task and
// waits.
//
// Owned and driven by one thread, the caller's. REQUIRES that the GIL is not held while they are
// joined.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace pipert {

struct WorkerHooks {
  std::function<void(int worker)> on_start;  // on the new thread, before its first task
  std::function<void(int worker)> on_exit;   // on it, after its last
};

class Workers {
 public:
  Workers(int num_workers, WorkerHooks hooks);
  ~Workers();  // waits for the task at hand, then joins
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // Every worker calls task(worker) once. REQUIRES that none is running. The task must not throw.
  void start(std::function<void(int worker)> task);
  // Waits until all are done, at most `limit`. True when they are.
  bool wait(std::chrono::milliseconds limit);

 private:
  void loop(int worker);
  void stop();

  WorkerHooks hooks_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::function<void(int)> task_;
  std::uint64_t generation_ = 0;  // counts the tasks handed out
  int num_running_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace pipert

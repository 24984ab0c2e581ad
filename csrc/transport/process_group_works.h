// PendingWorks: the c10d works that a channel end has started, so that another thread can abort
// them.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <mutex>
#include <set>

namespace pipert {

class PendingWorks {
 public:
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;

  // Starts a work unless the end was aborted; null then.
  template <typename Start>
  WorkPtr start(const Start& start) {
    const std::lock_guard lock(mutex_);
    if (aborted_) return nullptr;
    WorkPtr work = start();
    pending_.insert(work);
    return work;
  }

  // Waits without a limit; abort() ends it. False if aborted. A work can be waited for once.
  bool wait(const WorkPtr& work) { return wait(work, std::chrono::hours(24 * 365)); }
  // A work of an accelerator: the current stream waits, this thread doesn't.
  bool wait_on_stream(const WorkPtr& work) { return wait(work, kNoTimeout); }

  void abort() noexcept {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (const WorkPtr& work : pending_) {
      try {
        work->abort();
      } catch (...) {  // a work that can't be aborted has ended already
      }
    }
  }

 private:
  // gloo takes the limit that its group was made with when it is given none.
  bool wait(const WorkPtr& work, std::chrono::milliseconds limit) {
    if (work == nullptr || !work->wait(limit)) return false;
    const std::lock_guard lock(mutex_);
    pending_.erase(work);
    return !aborted_;
  }

  std::mutex mutex_;
  bool aborted_ = false;
  // Kept until they have been waited for: a gloo work that is dropped while pending jams its
  // connection.
  std::set<WorkPtr> pending_;
};

}  // namespace pipert

// The first failure of a pass: what went wrong, where, and the exception behind it. The first one
// wins.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ir/action.h"

namespace pipert {

enum class FailureKind : std::uint8_t {
  kAction,       // an action threw
  kTransfer,     // a channel threw, or its peer is gone
  kTimeout,      // a wait took longer than allowed
  kRemote,       // another process failed first
  kInterrupted,  // the caller asked to stop (Ctrl-C)
};

// What a rank held when it failed.
struct HeldMemory {
  std::vector<std::pair<StageIndex, int>> activations;  // by stage: microbatches
  std::int64_t bytes = -1;                              // as in MemoryTrace
  bool training = true;                                 // the pass
};

struct Failure {
  FailureKind kind = FailureKind::kAction;
  Rank rank = 0;
  std::optional<Action> action;
  std::string message;       // kAction: what the action had been given
  std::exception_ptr cause;  // null for kTimeout, kRemote, kInterrupted
  HeldMemory held{};         // kAction
};

class FirstFailure {
 public:
  // Any thread. Returns whether this was the first.
  bool set(Failure failure) {
    const std::lock_guard lock(mutex_);
    if (failure_.has_value()) return false;
    failure_ = std::move(failure);
    raised_.store(true, std::memory_order_release);
    return true;
  }
  // Cheap enough to ask before every instruction.
  bool raised() const { return raised_.load(std::memory_order_acquire); }
  // Takes it out; nothing if the pass went well. REQUIRES that no rank is running.
  std::optional<Failure> take() {
    const std::lock_guard lock(mutex_);
    raised_.store(false, std::memory_order_release);
    return std::exchange(failure_, std::nullopt);
  }

 private:
  std::atomic<bool> raised_{false};
  std::mutex mutex_;
  std::optional<Failure> failure_;
};

}  // namespace pipert

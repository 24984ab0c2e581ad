// Progress: where a rank is, for those who watch it. Written by the rank's thread, read by any.
#pragma once

#include <atomic>
#include <cstdint>

namespace pipert {

struct Progress {
  std::atomic<std::int32_t> instruction{-1};      // of the Program; -1 before the first
  std::atomic<std::int64_t> waiting_since_ns{0};  // 0 when the rank isn't waiting for a peer
};

// Says that the rank waits for a peer while it lives.
class Waiting {
 public:
  Waiting(Progress& progress, std::int64_t since_ns) : progress_(progress) {
    progress_.waiting_since_ns.store(since_ns, std::memory_order_relaxed);
  }
  ~Waiting() { progress_.waiting_since_ns.store(0, std::memory_order_relaxed); }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  Progress& progress_;
};

}  // namespace pipert

// ThreadState: what torch keeps for each thread and a worker must have like its caller: grad mode,
// autocast, the default device, dispatch and function modes. Taken on the caller's thread, put in
// place on a worker's.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <array>

namespace pipert {

class ThreadState {
 public:
  // Of the calling thread; autocast dtypes are those of the CPU and of `device`.
  explicit ThreadState(const c10::Device& device);

 private:
  friend class ThreadStateGuard;
  struct AutocastDtype {
    c10::DeviceType device;
    c10::ScalarType dtype;
  };
  at::ThreadLocalState state_;
  std::array<AutocastDtype, 2>
      autocast_;  // at::ThreadLocalState carries the switch, not the dtypes
  bool autocast_cache_;
};

// The calling thread has the state while this lives.
class ThreadStateGuard {
 public:
  explicit ThreadStateGuard(const ThreadState& state);
  ~ThreadStateGuard();
  ThreadStateGuard(const ThreadStateGuard&) = delete;
  ThreadStateGuard& operator=(const ThreadStateGuard&) = delete;

 private:
  static void set_autocast(const ThreadState& state);
  ThreadState previous_;
  at::ThreadLocalStateGuard guard_;
};

}  // namespace pipert

#include "runtime/thread_state.h"

#include <ATen/autocast_mode.h>

namespace pipert {

ThreadState::ThreadState(const c10::Device& device)
    : autocast_{{{c10::kCPU, at::autocast::get_autocast_dtype(c10::kCPU)},
                 {device.type(), at::autocast::get_autocast_dtype(device.type())}}},
      autocast_cache_(at::autocast::is_autocast_cache_enabled()) {}

ThreadStateGuard::ThreadStateGuard(const ThreadState& state)
    : previous_(c10::Device(state.autocast_[1].device)), guard_(state.state_) {
  set_autocast(state);
}

ThreadStateGuard::~ThreadStateGuard() { set_autocast(previous_); }

void ThreadStateGuard::set_autocast(const ThreadState& state) {
  for (const auto& [device, dtype] : state.autocast_)
    at::autocast::set_autocast_dtype(device, dtype);
  at::autocast::set_autocast_cache_enabled(state.autocast_cache_);
}

}  // namespace pipert

#include <atomic>
#include <thread>

#include "kernels/flag.h"

namespace pipert::kernels {
namespace {

std::uint32_t look_at(std::uint32_t* word) {
  return std::atomic_ref(*word).load(std::memory_order_acquire);
}

bool arrives(const FlagWait& wait) {
  for (std::int64_t poll = 0; poll < wait.max_polls; ++poll) {
    if (static_cast<std::int32_t>(look_at(wait.flag) - wait.value) >= 0) return true;
    if (wait.abort != nullptr && look_at(wait.abort) != 0) return false;
    std::this_thread::yield();
  }
  return false;
}

}  // namespace

void write_flag(std::uint32_t* flag, std::uint32_t value) {
  std::atomic_ref(*flag).store(value, std::memory_order_release);
}

void wait_flag(const FlagWait& wait) {
  const bool arrived = arrives(wait);
  if (wait.outcome != nullptr) *wait.outcome = arrived ? 1 : 0;
}

}  // namespace pipert::kernels

#include "bindings/python_turn.h"

#include <atomic>
#include <thread>

#include "runtime/trace.h"

namespace pipert {
namespace {

constexpr std::int64_t kShortNs = 300'000;  // longer forwards run side by side

std::atomic<bool> taken{false};
std::atomic<std::int64_t> typical_ns{0};  // of the latest turns

}  // namespace

PythonTurn::PythonTurn() {
  if (typical_ns.load(std::memory_order_relaxed) <= kShortNs) {
    const std::int64_t end = now_ns() + kShortNs;
    while (!(is_mine_ = !taken.exchange(true, std::memory_order_acquire)) && now_ns() < end) {
      std::this_thread::yield();
    }
  }
  start_ns_ = now_ns();
}

PythonTurn::~PythonTurn() {
  const std::int64_t took = now_ns() - start_ns_;
  const std::int64_t typical = typical_ns.load(std::memory_order_relaxed);
  typical_ns.store(typical + (took - typical) / 8, std::memory_order_relaxed);
  if (is_mine_) taken.store(false, std::memory_order_release);
}

}  // namespace pipert

// Doorbell: how a thread waits for what another process writes into shared memory.
//
// Lies in shared memory. Who waits looks for a while, then sleeps until the bell is rung. Who
// changes something that may be waited for rings, which costs a system call only if somebody
// sleeps.
//
// Note [No ring is lost]
//
// The waiter says that it sleeps, then looks once more; the other one writes, then looks whether
// anybody sleeps. All four are sequentially consistent, so one of the two sees the other. The
// kernel puts the waiter to sleep only if the bell wasn't rung since that look.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace pipert {

class Doorbell {
 public:
  // After a sequentially consistent write of what is waited for.
  void ring() noexcept {
    if (sleepers_.load() == 0) return;
    rings_.fetch_add(1);
    wake_all();
  }

  // Waits until `ready`, which is asked again and again: at first for `spin` without giving the
  // core away for long. Asleep, it wakes at least every kGlance to call `look_around`, which may
  // throw to end the wait.
  template <typename Ready, typename LookAround>
  void wait(std::chrono::microseconds spin, const Ready& ready, const LookAround& look_around) {
    if (ready() || watch(spin, ready)) return;
    const Sleeper sleeper(sleepers_);
    while (true) {
      const std::uint32_t rings = rings_.load();
      if (ready()) return;
      if (!sleep(rings)) look_around();
    }
  }

  static constexpr std::chrono::milliseconds kGlance{50};

 private:
  // Counts itself while it lives.
  class Sleeper {
   public:
    explicit Sleeper(std::atomic<std::uint32_t>& count) : count_(count) { count_.fetch_add(1); }
    ~Sleeper() { count_.fetch_sub(1); }
    Sleeper(const Sleeper&) = delete;
    Sleeper& operator=(const Sleeper&) = delete;

   private:
    std::atomic<std::uint32_t>& count_;
  };

  template <typename Ready>
  static bool watch(std::chrono::microseconds spin, const Ready& ready) {
    if (spin.count() == 0) return false;
    const auto start = std::chrono::steady_clock::now();
    constexpr std::chrono::microseconds kPatience{5};
    while (true) {
      for (int i = 0; i < 16; ++i) {
        if (ready()) return true;
        pause();
      }
      const auto watched = std::chrono::steady_clock::now() - start;
      if (watched > spin) return false;
      if (watched > kPatience) std::this_thread::yield();  // the other may be queued on this core
    }
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // Until the bell has been rung since it was rung `rings` times; false if it wasn't, and kGlance
  // is over or a signal came.
  bool sleep(std::uint32_t rings) noexcept;
  void wake_all() noexcept;

  std::atomic<std::uint32_t> rings_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

static_assert(std::atomic<std::uint32_t>::is_always_lock_free);  // else it couldn't be shared

}  // namespace pipert

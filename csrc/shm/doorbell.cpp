#include "shm/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace pipert {
namespace {

// Not FUTEX_PRIVATE: the other side is another process.
long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* limit) noexcept {
  return syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, limit,
                 nullptr, 0);
}

}  // namespace

bool Doorbell::sleep(std::uint32_t rings) noexcept {
  const timespec limit{.tv_sec = 0, .tv_nsec = std::chrono::nanoseconds(kGlance).count()};
  // A signal ends the sleep too: where they come often, the time would never be over.
  return futex(rings_, FUTEX_WAIT, rings, &limit) == 0 || errno == EAGAIN;
}

void Doorbell::wake_all() noexcept { futex(rings_, FUTEX_WAKE, INT_MAX, nullptr); }

}  // namespace pipert

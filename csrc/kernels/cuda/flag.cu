#include "kernels/cuda/spans.h"
#include "kernels/flag.h"

namespace pipert::kernels {
namespace {

__device__ std::uint32_t load_acquire(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__global__ void write(std::uint32_t* flag, std::uint32_t value) {
  asm volatile("st.release.sys.u32 [%0], %1;" : : "l"(flag), "r"(value) : "memory");
}

__device__ bool arrives(const FlagWait& wait) {
  for (std::int64_t poll = 0; poll < wait.max_polls; ++poll) {
    if (static_cast<std::int32_t>(load_acquire(wait.flag) - wait.value) >= 0) return true;
    if (wait.abort != nullptr && load_acquire(wait.abort) != 0) return false;
    __nanosleep(100);
  }
  return false;
}

__global__ void poll(FlagWait wait) {
  const bool arrived = arrives(wait);
  if (wait.outcome != nullptr) *wait.outcome = arrived ? 1 : 0;
}

}  // namespace

void write_flag(std::uint32_t* flag, std::uint32_t value, DeviceStream stream) {
  write<<<1, 1, 0, stream>>>(flag, value);
  check(cudaGetLastError(), "write_flag");
}

void wait_flag(const FlagWait& wait, DeviceStream stream) {
  poll<<<1, 1, 0, stream>>>(wait);
  check(cudaGetLastError(), "wait_flag");
}

}  // namespace pipert::kernels

#include "cuda/cuda_stream.h"

#include <thread>

namespace pipert {

CudaStream::~CudaStream() {
  try {
    cuda::destroy_stream(stream_);
  } catch (const CudaError&) {  // the context is gone, and the stream with it
  }
}

bool CudaStream::drain(std::chrono::milliseconds patience) const noexcept {
  const auto end = std::chrono::steady_clock::now() + patience;
  try {
    while (!cuda::is_idle(stream_)) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  } catch (const CudaError&) {
  }
  return true;
}

}  // namespace pipert

// CudaStream: a stream of the current device. Owned.
#pragma once

#include <chrono>

#include "cuda/cuda_api.h"

namespace pipert {

class CudaStream {
 public:
  CudaStream() : stream_(cuda::create_stream()) {}
  // Doesn't wait: what it was given still runs.
  ~CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cuda::Stream get() const { return stream_; }
  // Waits until the stream has nothing to do. False if it has at the end of `patience`. A context
  // that is broken has nothing to do.
  bool drain(std::chrono::milliseconds patience) const noexcept;

 private:
  cuda::Stream stream_;
};

}  // namespace pipert

// A fake of what torch has of CUDA, over the fake CUDA, for a torch without: a program that links
// it has tensors on "cuda:0" and "cuda:1" (see caching_allocator_fake.h), streams that are current
// for each thread, and the few operators that pipert's own C++ calls: empty, empty_strided and
// copy_, and what torch makes of them. It also is device/cuda/torch_stream's other implementation.
//
// Everything else that torch computes fails on such tensors; kernels are launch()ed.
#pragma once

#include "cuda/cuda_api.h"

namespace pipert::cuda_fake {

// The calling thread's on a device; never null.
cuda::Stream current_stream(int device);

// While it lives, the calling thread's stream on its device; the device stays the current one.
class StreamScope {
 public:
  explicit StreamScope(cuda::Stream stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  int device_;
  cuda::Stream previous_;
};

}  // namespace pipert::cuda_fake

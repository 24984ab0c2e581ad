// The stream that this thread's work on a CUDA device lands on now, for what doesn't know torch.
#pragma once

#include <c10/core/Device.h>

struct CUstream_st;

namespace pipert {

// A cudaStream_t. REQUIRES a device of CUDA.
CUstream_st* current_stream(const c10::Device& device);

}  // namespace pipert

// DeviceStream: a CUDA stream as an opaque handle (cudaStream_t), named without CUDA's headers.
// Null is the default stream. A function that takes one enqueues its work there and returns; the
// stream's device must be the calling thread's current one.
#pragma once

struct CUstream_st;

namespace pipert::kernels {

using DeviceStream = CUstream_st*;

}  // namespace pipert::kernels

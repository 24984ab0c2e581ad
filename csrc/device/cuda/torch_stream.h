// torch_stream: the one thing that torch's generic streams (c10/core) can't tell of CUDA.
#pragma once

#include <c10/core/Stream.h>

#include "cuda/cuda_api.h"

namespace pipert {

// A stream that torch didn't make, as torch names it; null: the device's default one.
c10::Stream as_torch_stream(cuda::Stream stream, c10::DeviceIndex device);

}  // namespace pipert

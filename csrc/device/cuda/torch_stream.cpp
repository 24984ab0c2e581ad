#include "device/cuda/torch_stream.h"

#include <c10/cuda/CUDAStream.h>

namespace pipert {

c10::Stream as_torch_stream(cuda::Stream stream, c10::DeviceIndex device) {
  return c10::cuda::getStreamFromExternal(stream, device).unwrap();
}

}  // namespace pipert

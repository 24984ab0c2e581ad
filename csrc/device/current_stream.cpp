#include "device/current_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace pipert {

CUstream_st* current_stream(const c10::Device& device) {
  const c10::impl::VirtualGuardImpl streams(device.type());
  return static_cast<CUstream_st*>(streams.getStreamNativeHandle(streams.getStream(device)));
}

}  // namespace pipert

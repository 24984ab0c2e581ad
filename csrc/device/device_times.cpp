#include "device/device_times.h"

#include "device/cuda_lane.h"

namespace pipert {

std::unique_ptr<DeviceTimes> make_device_times(const c10::Device& device, std::size_t num_passes,
                                               std::size_t num_instructions) {
  if (num_passes == 0 || !device.is_cuda()) return nullptr;
  return make_cuda_times(device, num_passes, num_instructions);
}

}  // namespace pipert

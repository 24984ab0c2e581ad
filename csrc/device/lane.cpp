#include "device/lane.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "device/accelerator_lane.h"
#include "device/cpu_lane.h"
#include "device/cuda_lane.h"

namespace pipert {

std::unique_ptr<Lane> make_lane(const c10::Device& device, LanePriority priority) {
  if (device.is_cpu()) return std::make_unique<CpuLane>();
  if (device.is_cuda()) {
    if (auto lane = make_cuda_lane(device, priority)) return lane;
  }
  const c10::impl::VirtualGuardImpl guard(device.type());
  const int level = priority == LanePriority::kTransfer ? -1 : 0;  // lower is more urgent
  return make_accelerator_lane(guard.getNewStream(device, level));
}

std::unique_ptr<Lane> current_lane(const c10::Device& device) {
  if (device.is_cpu()) return std::make_unique<CpuLane>();
  if (device.is_cuda()) {
    if (auto lane = current_cuda_lane(device)) return lane;
  }
  const c10::impl::VirtualGuardImpl guard(device.type());
  return make_accelerator_lane(guard.getStream(device));
}

}  // namespace pipert

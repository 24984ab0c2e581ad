// A build without CUDA takes this file in place of device/cuda/.
#include "device/cuda_lane.h"

namespace pipert {

std::unique_ptr<Lane> make_cuda_lane(const c10::Device&, LanePriority) { return nullptr; }

}  // namespace pipert

// A build without CUDA takes this file in place of device/cuda/.
#include "device/cuda_lane.h"

namespace pipert {

bool has_cuda_lanes() { return false; }
std::unique_ptr<Lane> make_cuda_lane(const c10::Device&, LanePriority) { return nullptr; }
std::unique_ptr<Lane> current_cuda_lane(const c10::Device&) { return nullptr; }
std::unique_ptr<DeviceTimes> make_cuda_times(const c10::Device&, std::size_t, std::size_t) {
  return nullptr;
}
std::unique_ptr<GraphPool> make_cuda_graph_pool(const c10::Device&) { return nullptr; }

}  // namespace pipert

#include "device/device_graph.h"

#include "device/cuda_lane.h"

namespace pipert {

std::unique_ptr<GraphPool> make_graph_pool(const c10::Device& device) {
  return device.is_cuda() ? make_cuda_graph_pool(device) : nullptr;
}

}  // namespace pipert

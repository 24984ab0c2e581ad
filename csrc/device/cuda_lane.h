// What the device floor has of CUDA; a build without CUDA takes cuda_none.cpp in place of cuda/.
//
// Lanes have streams of their own. torch's getNewStream hands out a pool of 32 that NCCL's streams
// come from too, so two lanes could share one and order each other by accident.
#pragma once

#include <cstddef>
#include <memory>

#include "device/device_graph.h"
#include "device/device_times.h"
#include "device/lane.h"

namespace pipert {

bool has_cuda_lanes();

// Null in a build without CUDA: the caller then takes the generic lane.
std::unique_ptr<Lane> make_cuda_lane(const c10::Device& device, LanePriority priority);
// The calling thread's current stream. Null likewise; its marks and those of lanes can wait for
// each other.
std::unique_ptr<Lane> current_cuda_lane(const c10::Device& device);
// Null likewise.
std::unique_ptr<DeviceTimes> make_cuda_times(const c10::Device& device, std::size_t num_passes,
                                             std::size_t num_instructions);
// Null likewise.
std::unique_ptr<GraphPool> make_cuda_graph_pool(const c10::Device& device);

}  // namespace pipert

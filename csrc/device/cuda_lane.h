// Lanes of CUDA devices on streams of their own. torch's getNewStream hands out a pool of 32 that
// NCCL's streams come from too, so two lanes could share one and order each other by accident.
#pragma once

#include <memory>

#include "device/lane.h"

namespace pipert {

// Null in a build without CUDA (csrc/device/cuda_none.cpp): the caller then takes the generic lane.
std::unique_ptr<Lane> make_cuda_lane(const c10::Device& device, LanePriority priority);

}  // namespace pipert

// Lanes of any accelerator that torch knows, through c10's generic streams and events.
#pragma once

#include <c10/core/Stream.h>

#include "device/lane.h"

namespace pipert {

std::unique_ptr<Lane> make_accelerator_lane(const c10::Stream& stream);

}  // namespace pipert

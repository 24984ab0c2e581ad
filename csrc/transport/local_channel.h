// The channel between two ranks that are threads of one process: tensors are handed over as they
// are, or copied when the ranks have different devices.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "transport/channel.h"

namespace pipert {

struct LocalChannel {
  std::unique_ptr<Sender> sender;
  std::unique_ptr<Receiver> receiver;
};

// `device`: the receiving rank's. `spin_us`: how long a receiver polls before it sleeps.
LocalChannel make_local_channel(const c10::Device& device, int spin_us);

}  // namespace pipert

// device_axis: a rank's pass as its device saw it.
//
// The host issues work long before it is done, so its own times say where the host was. On the
// device's axis the compute lane goes through the pass instead: from one action's end to the next
// one's start it is idle, first until the host comes to the instruction (TraceEvent::issued_ns),
// then for what the action waits for. What stands on no lane (posting, sending, releasing) takes
// none of it. Moves and messages have their own lanes and times of their own, beside compute.
#pragma once

#include <vector>

#include "device/device_span.h"
#include "plan/program.h"
#include "runtime/trace.h"

namespace pipert {

// `host`: a pass that ended, of `program`. `spans`: by instruction: of actions and moves their
// work; of the Recv that posted a message, its end alone: when the message was there. Without one,
// an action has the host's times. The pass ends when the device is done, if that is later.
PassTrace on_device_axis(const PassTrace& host, const Program& program,
                         const std::vector<DeviceSpan>& spans);

}  // namespace pipert

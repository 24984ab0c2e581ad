// send_room: whether ranks that let few messages be on their way come to their ends.
#pragma once

#include "plan/dataflow.h"

namespace pipert {

// Whether all Runs end if of each edge at most `send_slots` messages are on their way: a Send then
// waits until the Run that reads one of those before it has begun. verify() with a capacity says
// the same of a chain of stages; this is for what else they hand on. REQUIRES send_slots >= 1.
// O(Runs and deliveries).
bool has_send_room(const Dataflow& dataflow, int send_slots);

}  // namespace pipert

// The channel between two processes of one host, for tensors of the CPU: frames in shared memory
// (csrc/shm). The sender's process makes the segment, the receiver's opens it.
//
// Note [One copy]
//
// The sender writes a frame into the segment. Large frames stay there: the receiver's tensors share
// that memory, which the sender gets back when the last of them dies. So a message is copied once,
// and memory for it is held once. What a stage keeps for its backward lies in /dev/shm then; of
// which half is left to others (BlockPool). Frames beyond that, small ones, and those that come in
// pieces are copied out: while they are still being written if they are large, so that one core's
// copy runs beside the other's.
//
// A send never waits. Where /dev/shm has no room, a thread brings the frame in pieces (Courier).
#pragma once

#include <chrono>
#include <memory>

#include "shm/segment.h"
#include "transport/channel.h"

namespace pipert {

// `segment`: from make_ring_segment(). `spin`: how long an end looks before it sleeps.
std::unique_ptr<Sender> make_shm_sender(std::shared_ptr<Segment> segment,
                                        std::chrono::microseconds spin);
// `segment`: from open_ring_segment().
std::unique_ptr<Receiver> make_shm_receiver(std::shared_ptr<Segment> segment,
                                            std::chrono::microseconds spin);

}  // namespace pipert

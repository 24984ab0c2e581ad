// The channel between two processes of one host, for tensors of the CPU: frames in shared memory
// (csrc/shm). The sender's process makes the segment, the receiver's opens it.
//
// Note [Two copies at once]
//
// The sender writes a frame into the segment, the receiver copies it out, large frames while they
// are still being written: one core's copy runs beside the other's, part by part, through caches
// that both share. So a message takes little longer than one copy, and its tensors own their
// memory: the room in the segment is free again before the receiver's stage runs.
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

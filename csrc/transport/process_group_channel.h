// The channel between two processes over torch.distributed: one two-rank group for each directed
// edge, so that no transfer waits behind one of another edge or direction. Rank 0 of the group
// sends, rank 1 receives.
//
// Note [Frames and their sizes]
//
// A message travels as one frame on tag 0. Both ends know how long the longest frame of the edge's
// last pass was, and post receives of that many bytes, and send no more. What doesn't fit (the
// first pass, a larger batch) follows on tag 1, and the next pass has room. So a receive can be
// posted long before the message exists, sizes may change at any time, and no rank ever has to ask.
// gloo needs the receive to be at least as large as the send: the process dies otherwise. That is
// why the size depends on what both ends have been through together, a pass that all ranks
// completed, and on nothing that the ends may differ in: which message is next, or whether this
// pass trains.
//
// Tensors of an accelerator travel beside the frame, over the device's own backend: the frame's
// description comes first and is there long before the data, because the sender's host runs ahead
// of its device.
//
// Note [Aborting gloo]
//
// A gloo Work can be waited for once, has no useful isCompleted(), and closes all connections of
// its group when a timed wait runs out. So waits have no limit here; whoever watches calls abort(),
// which wakes them. After that the group still has receives posted, which would swallow later
// messages: the channel can't be reset, and works, buffers and groups must go together.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <memory>

#include "transport/channel.h"

namespace c10d {
class Backend;
}

namespace pipert {

// `cpu`: the group's backend for CPU tensors. `accelerator`: for those of `device`; null if there
// is none.
std::unique_ptr<Sender> make_process_group_sender(c10::intrusive_ptr<c10d::Backend> cpu,
                                                  c10::intrusive_ptr<c10d::Backend> accelerator);
std::unique_ptr<Receiver> make_process_group_receiver(c10::intrusive_ptr<c10d::Backend> cpu,
                                                      c10::intrusive_ptr<c10d::Backend> accelerator,
                                                      const c10::Device& device);

}  // namespace pipert

// The ends of a channel whose messages travel in a narrower format: float32 tensors are packed by
// the sender and unpacked by the receiver (kernels/slot_layout.h), on the lane that made them and
// the one that takes them. What arrives is rounded: this changes the numbers. All other tensors
// travel as they are.
//
// Note [A compressed message]
// Of n tensors it has 2n: each tensor, or the uint8 bytes of its slot, and then for each a tensor
// without elements, whose sizes are (0) for one that travels as it is, and (0, 1, and the tensor's
// own sizes) for one that was packed. Sizes cross every channel and cost no bytes. The structure of
// an activation is a tuple: what was there, and the n tensors behind it.
#pragma once

#include <memory>

#include "kernels/slot_layout.h"
#include "transport/channel.h"

namespace pipert {

// `inner` does the work. Both ends of an edge need the same format, and devices that have kernels:
// the CPU or CUDA.
std::unique_ptr<Sender> compress(std::unique_ptr<Sender> inner, kernels::Format format);
std::unique_ptr<Receiver> decompress(std::unique_ptr<Receiver> inner, kernels::Format format);

}  // namespace pipert

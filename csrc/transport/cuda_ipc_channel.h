// The channel between two processes of one host whose ranks are on GPUs: frames through shared
// memory (csrc/shm), the tensors' bytes by copy engines from one GPU's memory into the other's
// (csrc/ipc).
//
// Note [Two ways for the bytes]
//
// The sender's copy engine pushes a message's tensors into a slot of the receiver's memory, as soon
// as the lane has written them; the frame, which the receiver's host reads, says which slot. What
// doesn't fit into a slot (the first messages, a larger batch) is brought to the host and travels
// behind the frame; the receiver then grants larger slots. That is slower, since the host waits for
// the device, and right at any time.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <memory>
#include <string>

#include "transport/channel.h"

namespace pipert {

// One end of an edge, while ranks connect. Sources make it, destinations open it, sources then map
// the destination's memory: what fails there can't be had, and the error says why.
class CudaIpcEdge {
 public:
  virtual ~CudaIpcEdge() = default;
  // By which the destination opens it.
  virtual std::string name() const = 0;
  virtual void remove_name() noexcept = 0;
  // By the source, when the destination has opened it. CudaError.
  virtual void map_slots() = 0;
  // Once, by the end that it is for.
  virtual std::unique_ptr<Sender> make_sender(std::chrono::microseconds spin) = 0;
  virtual std::unique_ptr<Receiver> make_receiver(std::chrono::microseconds spin) = 0;
};

// False in a build without CUDA (cuda_ipc_none.cpp); both functions throw ValueError there.
bool has_cuda_ipc();
// SegmentError or CudaError: it can't be had.
std::shared_ptr<CudaIpcEdge> make_cuda_ipc_source(const c10::Device& device);
std::shared_ptr<CudaIpcEdge> open_cuda_ipc_destination(const std::string& name,
                                                       const c10::Device& device);

}  // namespace pipert

// Frame: a Message as one run of bytes, for channels that leave the process.
//
// Format (docs/architecture.md): a fixed header, a description of each tensor (flags, dtype, sizes,
// strides), the Structure, then the tensors' bytes, each at a multiple of 64. Tensors that travel
// beside the frame (those of an accelerator) are described in it and have no bytes there. Strides
// are kept where the elements are dense or repeated: a kernel may add in another order over another
// layout, and ranks in threads see the sender's strides.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "device/message.h"

namespace pipert {

class FrameWriter {
 public:
  // Keeps a reference to the tensors, and a dense copy of those whose strides can't be kept.
  // ValueError for tensors that are more, or less, than their elements: sparse, quantized, fake.
  explicit FrameWriter(Message message);

  // Of the whole frame.
  std::int64_t num_bytes() const { return num_bytes_; }
  // REQUIRES room for num_bytes(). `on_progress` is told now and then how many bytes, from the
  // start, are written.
  void write(char* destination, const std::function<void(std::size_t)>& on_progress = {}) const;
  // The tensors that travel beside the frame, in order.
  const std::vector<at::Tensor>& beside() const { return beside_; }

 private:
  Message message_;
  std::string description_;  // tensors and structure
  std::vector<std::int64_t>
      offsets_;  // of each tensor's bytes, from the frame's start; -1: none here
  std::vector<at::Tensor> beside_;
  std::int64_t num_bytes_ = 0;
};

// Of the frame that starts with these bytes: how long it is. ValueError if they don't start a
// frame. REQUIRES at least kFrameHeaderBytes.
std::int64_t frame_num_bytes(const char* start, std::int64_t num_bytes);

extern const std::int64_t kFrameHeaderBytes;

// The message in a whole frame: a one-dimensional tensor of bytes on the CPU, whose memory the
// message's tensors share. Tensors that travel beside it are empty, allocated on `device` with the
// sender's sizes and strides; their indices are appended to `beside`. ValueError for bytes that are
// no frame.
Message read_frame(const at::Tensor& frame, const c10::Device& device,
                   std::vector<std::size_t>& beside);

}  // namespace pipert

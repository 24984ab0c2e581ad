// FrameBuffers: memory for frames that arrive, used again when the tensors of one have died.
//
// Memory that comes fresh from the system costs as much as the copy of a frame into it: each page
// is cleared first. So large buffers are kept, as many as were in use at once in one of the last
// passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace pipert {

class FrameBuffers {
 public:
  FrameBuffers();
  ~FrameBuffers();
  FrameBuffers(const FrameBuffers&) = delete;
  FrameBuffers& operator=(const FrameBuffers&) = delete;

  // uint8 of shape (num_bytes,), on the CPU, not initialised. Its memory comes back here when the
  // last tensor that shares it dies, on whichever thread, even if that is after this.
  at::Tensor take(std::int64_t num_bytes);
  void begin_pass();

 private:
  class Shelf;
  std::shared_ptr<Shelf> shelf_;  // shared with the tensors
};

}  // namespace pipert

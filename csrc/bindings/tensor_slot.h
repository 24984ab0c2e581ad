// TensorSlot: some tensors that lie side by side in one piece of memory, so that all of them are
// written, or copied, with one launch of a kernel.
//
// Of one device, CUDA's or the CPU. What it gives a CUDA device to do lands on the calling thread's
// current stream, and may be captured into a graph.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

#include "kernels/piece.h"

namespace pipert {

class TensorSlot {
 public:
  // Room for tensors like these, which may be none. ValueError unless they are dense in memory and
  // on one device.
  explicit TensorSlot(const std::vector<at::Tensor>& like);

  // Its own.
  const std::vector<at::Tensor>& tensors() const { return tensors_; }
  // Whether the tensors have the sizes, strides, dtypes and device of its own, and none requires a
  // gradient.
  bool fits(const std::vector<at::Tensor>& tensors) const;
  // Overwrites its own. ValueError unless the tensors fit.
  void fill(const std::vector<at::Tensor>& tensors);
  // New ones like its own, whose contents are undefined.
  std::vector<at::Tensor> room() const;
  // Overwrites tensors that room() gave with the contents of its own.
  void read(const std::vector<at::Tensor>& tensors) const;

 private:
  std::byte* bytes() const { return static_cast<std::byte*>(memory_.data_ptr()); }

  at::Tensor memory_;
  std::vector<at::Tensor> tensors_;  // views of it
};

}  // namespace pipert

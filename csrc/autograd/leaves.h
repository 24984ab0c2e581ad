// Leaves: the parameters and buffers of a pipeline, and where they and their gradients lie.
//
// A recorded step reads and writes memory at fixed addresses, so it may be replayed only while
// everything lies where it lay. Used by the caller's thread, between passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "base/fingerprint.h"

namespace pipert {

class Leaves {
 public:
  explicit Leaves(std::vector<at::Tensor> tensors) : tensors_(std::move(tensors)) {}

  const std::vector<at::Tensor>& tensors() const { return tensors_; }

  // Makes a difference when a tensor or its gradient lies elsewhere, came or went, has other sizes,
  // strides or another dtype, or is to be trained or no longer.
  void add_to(Fingerprint& fingerprint) const;

  // By tensor; undefined where there is none.
  std::vector<at::Tensor> gradients() const;
  // REQUIRES one for each tensor, undefined where it shall have none.
  void set_gradients(const std::vector<at::Tensor>& gradients);

 private:
  std::vector<at::Tensor> tensors_;
};

}  // namespace pipert

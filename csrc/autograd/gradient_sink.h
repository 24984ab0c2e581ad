// GradientSink: where backward ends at the front edge of a stage. It makes a received tensor part
// of the autograd graph and keeps the gradient that reaches it.
//
// A leaf that requires grad would do too, but a module that works in place on its input
// (ReLU(inplace=True)) would then fail, though it works in the unpartitioned model.
//
// Owned by the graph, and by the stage until it has read the gradients. Used by one thread at a
// time.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <string>
#include <vector>

#include "autograd/node_ptr.h"

namespace pipert {

// The gradient, or a copy if anybody else has it or its memory and torch might write to it: it adds
// to a .grad in place once it is nobody else's, so what leaves a graph, or enters it late, may not
// share memory with one.
at::Tensor owned(at::Tensor gradient);

class GradientSink final : public torch::autograd::Node {
 public:
  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;
  std::string name() const override { return "PipelineStageInput"; }

  // One gradient for each attached tensor, undefined where none arrived; empties the sink, which
  // refuses any other.
  std::vector<at::Tensor> take();
  bool is_taken() const { return is_taken_; }

 private:
  std::vector<at::Tensor> gradients_;
  bool is_taken_ = false;
};

using AttachedSink = NewNode<GradientSink>;

// Makes each tensor for which `requires_grad` is true require a gradient that ends in the returned
// sink. REQUIRES tensors that aren't part of a graph. The sink is null when none requires a
// gradient. ValueError for an integer or boolean tensor that should require one.
AttachedSink attach_sink(const std::vector<at::Tensor>& tensors,
                         const std::vector<bool>& requires_grad);

}  // namespace pipert

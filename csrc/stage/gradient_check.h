// Whether the gradients that came back for a stage's outputs, or from later readers of its inputs,
// are theirs: torch adds up or casts some that don't fit.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <vector>

#include "base/ids.h"

namespace pipert {

// A forward, for the error message.
struct ForwardRun {
  StageIndex stage = 0;
  Microbatch microbatch = 0;
  bool is_second = false;  // the gradients are of what the first one returned
};

enum class Gradients : std::uint8_t { kOfOutputs, kOfInputs };

// `roots`: the graph of what the forward returned, or where that of its inputs ends, by tensor;
// invalid where it needs no gradient. Throws ValueError unless there is one gradient for each
// tensor, undefined or of its shape and dtype.
void check_gradients(const ForwardRun& forward, Gradients of,
                     const std::vector<torch::autograd::Edge>& roots,
                     const std::vector<at::Tensor>& gradients);

}  // namespace pipert

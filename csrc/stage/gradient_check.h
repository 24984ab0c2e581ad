// Whether gradients can come back through a stage, and whether those that came for its outputs, or
// from later readers of its inputs, are theirs: torch adds up or casts some that don't fit.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <vector>

#include "base/ids.h"
#include "stage/stage_body.h"

namespace pipert {

// A forward, for the error message.
struct ForwardRun {
  StageIndex stage = 0;
  Microbatch microbatch = 0;
  bool is_second = false;  // the gradients are of what the first one returned
};

// Which inputs of a forward need a gradient, and who can bring it.
struct InputNeeds {
  const std::vector<bool>& needs_gradient;  // by tensor
  const Structure* structure;               // as in Message
  const std::vector<bool>& read_elsewhere;  // by positional argument, by other stages; empty: none
};

// Throws ValueError where nobody trains who should: no output needs a gradient, although an input
// needs one that only this stage can bring, or the body has parameters that need one.
void check_gradient_flows(const BodyResult& result, const InputNeeds& inputs,
                          const StageBody& body);

enum class Gradients : std::uint8_t { kOfOutputs, kOfInputs };

// `roots`: the graph of what the forward returned, or where that of its inputs ends, by tensor;
// invalid where it needs no gradient. Throws ValueError unless there is one gradient for each
// tensor, undefined or of its shape and dtype.
void check_gradients(const ForwardRun& forward, Gradients of,
                     const std::vector<torch::autograd::Edge>& roots,
                     const std::vector<at::Tensor>& gradients);

}  // namespace pipert

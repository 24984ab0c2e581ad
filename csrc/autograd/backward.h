// The full backward of one microbatch on one stage, driven from C++ through torch's engine.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <vector>

namespace pipert {

// Runs backward from `roots` with `gradients` (same length; shapes and dtypes of the outputs that
// the roots stand for), accumulates into the .grad of every leaf and runs hooks. Frees what the
// graph saved as it goes, unless `keep_graph`. CPU nodes run on this thread. REQUIRES that the GIL
// is not held.
void run_backward(const std::vector<torch::autograd::Edge>& roots,
                  const std::vector<at::Tensor>& gradients, bool keep_graph);

}  // namespace pipert

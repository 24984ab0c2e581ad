// Questions about the autograd graph of one microbatch on one stage.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <vector>

namespace pipert {

// Whether a node that is implemented in Python (a custom autograd.Function, a compiled module) can
// be reached.
bool has_python_node(const std::vector<torch::autograd::Edge>& roots);
// Likewise one that torch.compile has made. Such nodes refuse a backward that keeps its graph.
bool has_compiled_node(const std::vector<torch::autograd::Edge>& roots);
// Whether a backward adds to the .grad of a tensor that is none of these.
bool reaches_other_leaf(const std::vector<torch::autograd::Edge>& roots,
                        const std::vector<at::Tensor>& leaves);

}  // namespace pipert

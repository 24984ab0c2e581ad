// InputPaths: which nodes of a microbatch's graph lie on a path from its outputs to its inputs.
//
// Those nodes make the gradient that the stage before waits for; what hangs off them makes weight
// gradients alone. A value, made by one walk over the graph; points into it.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <unordered_map>
#include <vector>

namespace pipert {

class InputPaths {
 public:
  // `inputs`: where the stage's inputs begin (its GradientSink); null: nothing lies on a path.
  InputPaths(const std::vector<torch::autograd::Edge>& roots, const torch::autograd::Node* inputs);

  bool contains(const torch::autograd::Node* node) const {
    const auto found = on_path_.find(node);
    return found != on_path_.end() && found->second;
  }
  // Those on a path, `inputs` itself left out, each once; a node comes behind all that it leads to.
  const std::vector<torch::autograd::Node*>& nodes() const { return nodes_; }
  // Whether some node, on a path or not, is implemented in Python.
  bool has_python_node() const { return has_python_node_; }

 private:
  void walk(torch::autograd::Node* root);

  const torch::autograd::Node* inputs_;
  std::unordered_map<const torch::autograd::Node*, bool> on_path_;
  std::vector<torch::autograd::Node*> nodes_;
  bool has_python_node_ = false;
};

}  // namespace pipert

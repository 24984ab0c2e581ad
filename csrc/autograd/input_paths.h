// InputPaths: which nodes of a microbatch's graph lie on a path from its outputs to its inputs.
//
// Those nodes make the gradient that the stage before waits for; what hangs off them makes weight
// gradients alone. A value, made by one walk over the graph; points into it.
#pragma once

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

#include "autograd/node_kind.h"

namespace pipert {

class InputPaths {
 public:
  struct PathNode {
    torch::autograd::Node* node = nullptr;
    NodeKind kind = NodeKind::kOther;
  };
  // Positions in nodes(), but for these two.
  using Position = int;
  static constexpr Position kOff = -1;     // not on a path
  static constexpr Position kInputs = -2;  // where the stage's inputs begin

  // `inputs`: where the stage's inputs begin (its GradientSink); null: nothing lies on a path.
  InputPaths(const std::vector<torch::autograd::Edge>& roots, const torch::autograd::Node* inputs);

  Position position(const torch::autograd::Node* node) const {
    const auto found = seen_.find(node);
    return found == seen_.end() ? kOff : found->second.position;
  }
  bool contains(const torch::autograd::Node* node) const { return position(node) != kOff; }
  // Whether gradients come to that node from several others (or from one, by several edges).
  bool is_joined(const torch::autograd::Node* node) const {
    const auto found = seen_.find(node);
    return found != seen_.end() && found->second.is_joined;
  }
  // Those on a path, `inputs` itself left out, each once; a node comes behind all that it leads to.
  const std::vector<PathNode>& nodes() const { return nodes_; }
  // Whether some node, on a path or not, is implemented in Python.
  bool has_python_node() const { return has_python_node_; }

 private:
  struct Seen {
    Position position = kOff;
    bool is_joined = false;
  };
  // REQUIRES that `root` was noted as seen.
  void walk(torch::autograd::Node* root);
  // An edge leads to it. True for the first one.
  bool note(const torch::autograd::Node* node);

  const torch::autograd::Node* inputs_;
  ska::flat_hash_map<const torch::autograd::Node*, Seen> seen_;  // all nodes
  std::vector<PathNode> nodes_;
  bool has_python_node_ = false;
};

}  // namespace pipert

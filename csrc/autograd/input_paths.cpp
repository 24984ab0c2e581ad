#include "autograd/input_paths.h"

#include <cstddef>
#include <utility>

#include "autograd/node_kind.h"

namespace pipert {

InputPaths::InputPaths(const std::vector<torch::autograd::Edge>& roots,
                       const torch::autograd::Node* inputs)
    : inputs_(inputs) {
  for (const auto& root : roots) {
    if (root.is_valid() && !on_path_.contains(root.function.get())) walk(root.function.get());
  }
}

// Depth first without recursion: graphs are as deep as models.
void InputPaths::walk(torch::autograd::Node* root) {
  struct Visit {
    torch::autograd::Node* node = nullptr;
    std::size_t next = 0;  // the edge to look at
    bool leads_to_inputs = false;
  };
  std::vector<Visit> open;
  const auto enter = [&](torch::autograd::Node* node) {
    on_path_.emplace(node, false);
    has_python_node_ = has_python_node_ || kind_of(*node) == NodeKind::kPython;
    open.push_back({node, 0, node == inputs_});
  };
  enter(root);
  while (!open.empty()) {
    Visit& visit = open.back();
    const auto& edges = std::as_const(*visit.node).next_edges();
    if (visit.next < edges.size()) {
      const auto& edge = edges[visit.next++];
      if (!edge.is_valid()) continue;
      const auto known = on_path_.find(edge.function.get());
      if (known == on_path_.end()) {
        enter(edge.function.get());
      } else {
        visit.leads_to_inputs = visit.leads_to_inputs || known->second;
      }
      continue;
    }
    const bool leads_to_inputs = visit.leads_to_inputs;
    on_path_[visit.node] = leads_to_inputs;
    if (leads_to_inputs && visit.node != inputs_) nodes_.push_back(visit.node);
    open.pop_back();
    if (!open.empty() && leads_to_inputs) open.back().leads_to_inputs = true;
  }
}

}  // namespace pipert

#include "autograd/input_paths.h"

#include <cstddef>
#include <utility>

namespace pipert {
namespace {

// Graphs of one thread's stages are about as large from microbatch to microbatch.
thread_local std::size_t expected_nodes = 0;

}  // namespace

InputPaths::InputPaths(const std::vector<torch::autograd::Edge>& roots,
                       const torch::autograd::Node* inputs)
    : inputs_(inputs) {
  seen_.reserve(expected_nodes);
  for (const auto& root : roots) {
    if (root.is_valid() && note(root.function.get())) walk(root.function.get());
  }
  expected_nodes = seen_.size();
}

bool InputPaths::note(const torch::autograd::Node* node) {
  const auto [seen, is_new] = seen_.emplace(node, Seen());
  seen->second.is_joined = !is_new;
  return is_new;
}

// Depth first without recursion: graphs are as deep as models.
void InputPaths::walk(torch::autograd::Node* root) {
  struct Visit {
    torch::autograd::Node* node = nullptr;
    NodeKind kind = NodeKind::kOther;
    std::size_t next = 0;  // the edge to look at
    bool leads_to_inputs = false;
  };
  std::vector<Visit> open;
  const auto enter = [&](torch::autograd::Node* node) {
    const NodeKind kind = kind_of(*node);
    has_python_node_ = has_python_node_ || kind == NodeKind::kPython;
    open.push_back({node, kind, 0, node == inputs_});
  };
  enter(root);
  while (!open.empty()) {
    Visit& visit = open.back();
    const auto& edges = std::as_const(*visit.node).next_edges();
    if (visit.next < edges.size()) {
      const auto& edge = edges[visit.next++];
      if (!edge.is_valid()) continue;
      if (note(edge.function.get())) {
        enter(edge.function.get());
      } else {
        visit.leads_to_inputs = visit.leads_to_inputs || contains(edge.function.get());
      }
      continue;
    }
    const Visit left = visit;
    open.pop_back();
    if (!left.leads_to_inputs) continue;
    if (!open.empty()) open.back().leads_to_inputs = true;
    const bool is_inputs = left.node == inputs_;
    seen_[left.node].position = is_inputs ? kInputs : static_cast<Position>(nodes_.size());
    if (!is_inputs) nodes_.push_back({left.node, left.kind});
  }
}

}  // namespace pipert

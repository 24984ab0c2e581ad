#include "autograd/graph.h"

#include <torch/csrc/autograd/function.h>

#include <cstring>
#include <typeinfo>
#include <unordered_set>

namespace pipert {

bool has_python_node(const std::vector<torch::autograd::Edge>& roots) {
  std::vector<const torch::autograd::Node*> pending;
  std::unordered_set<const torch::autograd::Node*> seen;
  const auto visit = [&](const torch::autograd::Edge& edge) {
    if (edge.is_valid() && seen.insert(edge.function.get()).second)
      pending.push_back(edge.function.get());
  };
  for (const auto& root : roots) visit(root);
  while (!pending.empty()) {
    const torch::autograd::Node* node = pending.back();
    pending.pop_back();
    // By name: the class itself is in torch_python, which this floor doesn't know.
    if (std::strstr(typeid(*node).name(), "PyNode") != nullptr) return true;
    for (const auto& next : node->next_edges()) visit(next);
  }
  return false;
}

}  // namespace pipert

#include "autograd/graph.h"

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>

#include <string>

#include "autograd/node_kind.h"

namespace pipert {
namespace {

template <typename Predicate>
bool reaches(const std::vector<torch::autograd::Edge>& roots, const Predicate& is_sought) {
  std::vector<const torch::autograd::Node*> pending;
  ska::flat_hash_set<const torch::autograd::Node*> seen;
  const auto visit = [&](const torch::autograd::Edge& edge) {
    if (edge.is_valid() && seen.insert(edge.function.get()).second)
      pending.push_back(edge.function.get());
  };
  for (const auto& root : roots) visit(root);
  while (!pending.empty()) {
    const torch::autograd::Node* node = pending.back();
    pending.pop_back();
    if (is_sought(*node)) return true;
    for (const auto& next : node->next_edges()) visit(next);
  }
  return false;
}

bool is_python(const torch::autograd::Node& node) { return kind_of(node) == NodeKind::kPython; }

}  // namespace

bool has_python_node(const std::vector<torch::autograd::Edge>& roots) {
  return reaches(roots, is_python);
}

bool has_compiled_node(const std::vector<torch::autograd::Edge>& roots) {
  return reaches(roots, [](const torch::autograd::Node& node) {
    return is_python(node) && name_of(node).find("CompiledFunction") != std::string::npos;
  });
}

bool reaches_other_leaf(const std::vector<torch::autograd::Edge>& roots,
                        const std::vector<at::Tensor>& leaves) {
  ska::flat_hash_set<const at::TensorImpl*> known;
  for (const at::Tensor& leaf : leaves) known.insert(leaf.unsafeGetTensorImpl());
  return reaches(roots, [&](const torch::autograd::Node& node) {
    const auto* end = dynamic_cast<const torch::autograd::AccumulateGrad*>(&node);
    return end != nullptr && known.count(end->variable.unsafeGetTensorImpl()) == 0;
  });
}

}  // namespace pipert

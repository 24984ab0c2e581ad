#include "autograd/split_backward.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cstddef>

#include "autograd/backward.h"
#include "autograd/fork_nodes.h"
#include "autograd/input_paths.h"
#include "autograd/node_kind.h"
#include "base/index.h"

namespace pipert {
namespace {

using torch::autograd::Edge;
using torch::autograd::Node;

// Empty where nothing speaks against it.
std::string_view reason_against_split(const Node& node, NodeKind kind) {
  if (kind == NodeKind::kProduct && !node.post_hooks().empty())
    return "it has a hook that looks at all of its gradients";
  return reason_against_split(kind);
}

// A node on the path behind which a wrapper counts on all gradients: torch's fully_shard reduces
// them there. Null if there is none.
const Node* find_whole(const InputPaths& paths) {
  if (!paths.has_python_node()) return nullptr;
  for (const auto& [node, kind] : paths.nodes()) {
    if (kind != NodeKind::kPython) continue;
    if (name_of(*node).find("PostBackward") != std::string::npos) return node;
  }
  return nullptr;
}

// Puts the stand-ins into one graph.
class Splitter {
 public:
  Splitter(const InputPaths& paths, bool split, std::set<UnsplitNode>& unsplit)
      : paths_(paths), split_(split), unsplit_(unsplit), splits_of_(paths.nodes().size(), kNone) {}

  // Each node comes behind all that it leads to, whose stand-ins are thus there before it.
  void rewire() {
    for (std::size_t i = 0; i < splits_of_.size(); ++i) {
      const auto& [node, kind] = paths_.nodes()[i];
      if (redirect_edges(*node)) add_stand_in(*node, kind, i);
    }
  }

  // Where a run of the input half begins that would begin at `root`. REQUIRES that it is on a path.
  Edge redirect(const Edge& root) const {
    const auto* split = split_at(paths_.position(root.function.get()));
    return split == nullptr ? root : Edge(split->owner, root.input_nr);
  }

  void abandon() {
    for (const auto& split : splits_) split.node->abandon();
  }

  // Before rewire(), for whoever may say undo().
  void remember() {
    for (const auto& [node, kind] : paths_.nodes()) edges_.push_back(node->next_edges());
  }

  // REQUIRES that the run kept what the graph saved.
  void undo() {
    abandon();
    for (std::size_t i = 0; i < edges_.size(); ++i) {
      Node& node = *paths_.nodes()[i].node;
      node.next_edges() = edges_[i];
      for (std::size_t j = 0; j < edges_[i].size(); ++j) redirect_edge(node, j, edges_[i][j]);
    }
  }

  // What was saved for the weight half holds the nodes that made it, and they all that they lead
  // to: after the run nothing of it is needed any more. Each node comes behind all that it leads
  // to, so none is gone before its turn.
  void close_path() {
    NewNode<CaughtGradients> closed;
    for (std::size_t i = 0; i < splits_of_.size(); ++i) {
      const auto& [node, kind] = paths_.nodes()[i];
      if (splits_of_[i] != kNone || kind == NodeKind::kInPlace) continue;
      if (closed.node == nullptr) {
        closed = make_node<CaughtGradients>(*node);
        closed.node->end();
      }
      for (Edge& edge : node->next_edges()) {
        if (edge.is_valid()) edge = {closed.owner, 0};
      }
    }
  }

  // After the run: what is left to run, appended to `edges`, and its gradients; undefined where the
  // edge's node has its own. Returns what the forks will tell.
  std::shared_ptr<const std::atomic<bool>> begin_weight_half(bool keep_graph,
                                                             std::vector<Edge>& edges,
                                                             std::vector<at::Tensor>& gradients) {
    // The latest layer's first, as in a full backward.
    for (auto caught = caught_.rbegin(); caught != caught_.rend(); ++caught) {
      if (!hands_on_in_turn(*caught->node)) caught->node->give(edges, gradients);
    }
    for (auto& caught : caught_) {
      if (caught.node->replaced().empty()) continue;
      caught.node->begin_weight_half();
      edges.emplace_back(std::move(caught.owner), 0);
    }
    const auto ran_again = splits_.empty() ? nullptr : std::make_shared<std::atomic<bool>>(false);
    for (auto& split : splits_) {
      split.node->begin_weight_half(keep_graph, ran_again);
      edges.emplace_back(std::move(split.owner), 0);
    }
    gradients.resize(edges.size());
    return ran_again;
  }

 private:
  // Leads the edges to stand-ins where there are, and finds those off the path. Whether there are
  // any: then it is a fork.
  bool redirect_edges(Node& node) {
    const auto& edges = std::as_const(node).next_edges();
    off_path_.assign(edges.size(), false);
    bool is_fork = false;
    for (std::size_t i = 0; i < edges.size(); ++i) {
      if (!edges[i].is_valid()) continue;
      const InputPaths::Position position = paths_.position(edges[i].function.get());
      off_path_[i] = position == InputPaths::kOff;
      is_fork = is_fork || off_path_[i];
      if (const auto* split = split_at(position))
        redirect_edge(node, i, {split->owner, edges[i].input_nr});
    }
    return is_fork;
  }

  // Where gradients of several nodes are added up, each must come at its node's turn.
  bool hands_on_in_turn(const CaughtGradients& caught) const {
    const auto& edges = caught.replaced();
    return std::any_of(edges.begin(), edges.end(),
                       [this](const Edge& edge) { return paths_.is_joined(edge.function.get()); });
  }

  // REQUIRES that `off_path_` is about the node.
  void add_stand_in(Node& node, NodeKind kind, std::size_t position) {
    const std::string_view reason = reason_against_split(node, kind);
    if (split_ && reason.empty() && kind == NodeKind::kProduct) {
      splits_of_[position] = static_cast<int>(splits_.size());
      splits_.push_back(make_node<SplitFork>(node.getptr(), off_path_));
      splits_.back().node->begin_input_half();
      return;
    }
    if (!reason.empty()) unsplit_.insert({name_of(node), std::string(reason)});
    const auto& edges = std::as_const(node).next_edges();
    auto caught = make_node<CaughtGradients>(node);
    for (std::size_t i = 0; i < edges.size(); ++i) {
      if (off_path_[i]) redirect_edge(node, i, {caught.owner, caught.node->replace(edges[i])});
    }
    caught_.push_back(std::move(caught));
  }

  // Null if that node has none.
  const NewNode<SplitFork>* split_at(InputPaths::Position position) const {
    if (position < 0 || splits_of_[as_index(position)] == kNone) return nullptr;
    return &splits_[as_index(splits_of_[as_index(position)])];
  }

  static constexpr int kNone = -1;
  const InputPaths& paths_;
  bool split_;
  std::set<UnsplitNode>& unsplit_;
  std::vector<int> splits_of_;  // by position: index in splits_, or kNone
  std::vector<NewNode<SplitFork>> splits_;
  std::vector<NewNode<CaughtGradients>> caught_;
  std::vector<bool> off_path_;                     // by edge of the node at hand
  std::vector<torch::autograd::edge_list> edges_;  // by position, before rewire(); or empty
};

}  // namespace

WeightBackward run_input_backward(const std::vector<Edge>& roots,
                                  const std::vector<at::Tensor>& gradients, const Node* inputs,
                                  const InputHalfOptions& options, std::vector<NodePtr>& retired,
                                  std::set<UnsplitNode>& unsplit) {
  if (inputs == nullptr) return {roots, gradients};
  const InputPaths paths(roots, inputs);
  if (const Node* whole = find_whole(paths)) {
    unsplit.insert({name_of(*whole),
                    "it expects the weights' gradients when it runs (FSDP): the "
                    "stage's whole backward runs in the input half"});
    run_backward(roots, gradients, options.keep_graph);
    if (options.keep_graph) {
      for (const Edge& root : roots) retired.push_back(root.function);
    }
    return {};
  }
  Splitter splitter(paths, options.split, unsplit);
  if (options.may_repeat) splitter.remember();
  splitter.rewire();
  std::vector<Edge> path_roots;
  std::vector<at::Tensor> path_gradients;
  std::vector<Edge> left;
  std::vector<at::Tensor> left_gradients;
  for (std::size_t i = 0; i < roots.size(); ++i) {
    const bool is_on_path = paths.contains(roots[i].function.get());
    (is_on_path ? path_roots : left).push_back(is_on_path ? splitter.redirect(roots[i]) : roots[i]);
    (is_on_path ? path_gradients : left_gradients).push_back(gradients[i]);
  }
  try {
    run_backward(path_roots, path_gradients, options.keep_graph);
  } catch (...) {
    options.may_repeat ? splitter.undo() : splitter.abandon();
    throw;
  }
  if (!options.keep_graph) splitter.close_path();
  auto ran_again = splitter.begin_weight_half(options.keep_graph, left, left_gradients);
  if (options.keep_graph) {
    for (const Edge& root : roots) retired.push_back(root.function);
    for (const Edge& root : path_roots) retired.push_back(root.function);
  }
  return {std::move(left), std::move(left_gradients), std::move(ran_again)};
}

bool WeightBackward::run(bool keep_graph, std::vector<NodePtr>& retired) && {
  if (edges_.empty()) return false;
  const auto root = make_node<WeightRoot>(std::move(edges_), std::move(gradients_));
  const std::uint64_t num_nodes = at::sequence_number::peek();  // made on this thread so far
  run_backward({Edge(root.owner, 0)}, {WeightRoot::seed()}, keep_graph);
  if (keep_graph) retired.push_back(root.owner);
  // Nodes of an accelerator run on a thread of the engine, which has a count of its own: what runs
  // behind a fork there is seen by the fork.
  return at::sequence_number::peek() != num_nodes || (ran_again_ != nullptr && *ran_again_);
}

}  // namespace pipert

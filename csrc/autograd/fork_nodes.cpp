#include "autograd/fork_nodes.h"

#include <ATen/SequenceNumber.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/functions/tensor.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "autograd/gradient_sink.h"
#include "autograd/node_kind.h"

namespace pipert {

using torch::autograd::Edge;
using torch::autograd::variable_list;

namespace {

bool shares_memory(const at::Tensor& tensor, const variable_list& others) {
  if (!tensor.defined() || !tensor.has_storage()) return false;
  return std::any_of(others.begin(), others.end(), [&](const at::Tensor& other) {
    return other.defined() && other.has_storage() && other.is_alias_of(tensor);
  });
}

// Of what one node caught or was given: each is handed on as its only owner.
variable_list all_owned(variable_list gradients) {
  for (at::Tensor& gradient : gradients) gradient = owned(std::move(gradient));
  return gradients;
}

}  // namespace

SplitFork::SplitFork(const NodePtr& fork, std::vector<bool> off_path)
    : Node(fork->sequence_nr()), fork_(fork), off_path_(std::move(off_path)) {
  for (std::uint32_t i = 0; i < fork->num_inputs(); ++i)
    input_metadata_.emplace_back(fork->input_metadata(i));
}

// By assignment: Node's own setters would number the node anew, which the engine needs only where
// it is asked for the gradients of certain nodes, and refuse one that something leads to.
void SplitFork::begin_input_half() {
  auto& edges = fork_->next_edges();
  others_.resize(edges.size());
  next_edges() = edges;
  for (std::size_t i = 0; i < edges.size(); ++i) {
    if (!off_path_[i]) continue;
    others_[i] = std::exchange(edges[i], Edge());
    next_edges()[i] = Edge();
  }
  state_ = State::kInputHalf;
}

void SplitFork::begin_weight_half(bool keep_graph, std::shared_ptr<std::atomic<bool>> ran_again) {
  keep_graph_ = keep_graph;
  TORCH_INTERNAL_ASSERT(state_ == State::kKept, name(), " was left out of the input half");
  next_edges() = others_;
  fork_->next_edges() = std::move(others_);
  ran_again_ = std::move(ran_again);
  state_ = State::kWeightHalf;
}

variable_list SplitFork::apply(variable_list&& gradients) {
  if (state_ == State::kInputHalf) {
    kept_ = run_hooks(std::move(gradients));
    state_ = State::kKept;
    return (*fork_)(variable_list(kept_));
  }
  if (state_ != State::kWeightHalf) refuse_second_run(name());
  state_ = State::kDone;
  const std::uint64_t num_nodes = at::sequence_number::peek();  // made on this thread so far
  variable_list result = (*fork_)(variable_list(kept_));
  if (at::sequence_number::peek() != num_nodes) ran_again_->store(true);
  // A bias may be handed the very gradient, which others have too.
  for (at::Tensor& gradient : result) {
    if (shares_memory(gradient, kept_)) gradient = gradient.clone();
  }
  kept_.clear();
  // Else the engine has its variables released, and torch itself refuses.
  if (keep_graph_) close_edges(*fork_);
  return result;
}

// As the engine does for a node that it runs itself.
variable_list SplitFork::run_hooks(variable_list gradients) const {
  for (const auto& hook : fork_->tensor_pre_hooks()) gradients = (*hook)(gradients);
  for (const auto& [output, hook] : fork_->retains_grad_hooks()) gradients = (*hook)(gradients);
  for (const auto& hook : fork_->pre_hooks()) gradients = (*hook)(gradients);
  return gradients;
}

void SplitFork::release_variables() {
  if (state_ != State::kDone || fork_ == nullptr) return;  // torch asks again where a graph dies
  fork_->release_variables();
  fork_ = nullptr;
}

void SplitFork::abandon() {
  next_edges().clear();
  others_.clear();
  if (fork_ != nullptr) fork_->next_edges().clear();
}

std::string SplitFork::name() const {
  return fork_ == nullptr ? "a node that has run" : name_of(*fork_);
}

std::uint32_t CaughtGradients::replace(const Edge& edge) {
  replaced_.push_back(edge);
  input_metadata_.emplace_back(edge.function->input_metadata(edge.input_nr));
  return num_inputs() - 1;
}

void CaughtGradients::begin_weight_half() {
  state_ = State::kHandsOn;
  caught_.resize(replaced_.size());
  next_edges() = std::move(replaced_);
}

void CaughtGradients::give(std::vector<Edge>& edges, std::vector<at::Tensor>& gradients) {
  caught_.resize(replaced_.size());
  std::move(replaced_.begin(), replaced_.end(), std::back_inserter(edges));
  std::move(caught_.begin(), caught_.end(), std::back_inserter(gradients));
  replaced_.clear();
  caught_.clear();
  state_ = State::kDone;
}

void CaughtGradients::end() {
  state_ = State::kDone;
  replaced_.clear();
  if (num_inputs() == 0) add_input_metadata(undefined_input());
}

variable_list CaughtGradients::apply(variable_list&& gradients) {
  switch (state_) {
    case State::kCatches:
      caught_ = std::move(gradients);
      return {};
    case State::kHandsOn:
      state_ = State::kDone;
      return all_owned(std::exchange(caught_, {}));
    case State::kDone:
      break;
  }
  refuse_second_run(name());
}

WeightRoot::WeightRoot(torch::autograd::edge_list edges, variable_list gradients)
    : Node(std::move(edges)), gradients_(std::move(gradients)) {
  add_input_metadata(seed());
  // The engine takes the stream of what this node makes from its inputs.
  for (const at::Tensor& gradient : gradients_) {
    if (gradient.defined()) add_input_metadata(gradient);
  }
}

variable_list WeightRoot::apply(variable_list&& /*nothing*/) {
  return all_owned(std::exchange(gradients_, {}));
}

const at::Tensor& WeightRoot::seed() {
  static const at::Tensor& number = *new at::Tensor(at::zeros({}));  // outlives every thread
  return number;
}

void refuse_second_run(const std::string& name) {
  TORCH_CHECK(false, "backward runs through ", name,
              " a second time: a tensor that was computed in one microbatch is used in another");
}

// A graph that is kept a while would run again, where torch's own refuses.
void close_edges(torch::autograd::Node& node) {
  const auto closed = make_node<CaughtGradients>(node);
  for (auto& edge : node.next_edges()) {
    if (edge.is_valid()) edge = {closed.owner, closed.node->replace(edge)};
  }
  closed.node->end();
}

void redirect_edge(torch::autograd::Node& node, std::size_t index, const Edge& edge) {
  node.next_edges()[index] = edge;
  // Its inner node shares all edges but the first, and is checked to.
  if (kind_of(node) != NodeKind::kInPlace || index == 0) return;
  dynamic_cast<torch::autograd::CopySlices&>(node).fn->next_edges()[index] = edge;
}

}  // namespace pipert

// The stand-ins of Note [How a backward is split] (split_backward.h).
//
// Owned by the graph that they are put into, and by what is left for the weight half. Run by
// torch's engine, on the thread and the stream on which it would run the fork.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "autograd/node_ptr.h"

namespace pipert {

// Takes a fork's place, in the input half and again in the weight half.
class SplitFork final : public torch::autograd::Node {
 public:
  // `off_path`: by edge of the fork, whether it leads away from the inputs.
  SplitFork(const NodePtr& fork, std::vector<bool> off_path);

  // The fork's edges on the path become this node's. REQUIRES that those that lead to split forks
  // lead to their stand-ins already.
  void begin_input_half();
  // Lets go of all that it leads to, where the input half failed: nodes that hold each other
  // through members die by recursion, and a graph is deep.
  void abandon();
  // From here on it runs the other edges, with the gradients that came in before. `keep_graph`: the
  // fork outlives the run, and must refuse another. `ran_again`: set if forward code runs within
  // (checkpointed blocks), on whatever thread the engine runs the fork.
  void begin_weight_half(bool keep_graph, std::shared_ptr<std::atomic<bool>> ran_again);

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;
  void release_variables() override;  // of the fork, once the weight half has run
  std::string name() const override;  // the fork's

 private:
  torch::autograd::variable_list run_hooks(torch::autograd::variable_list gradients) const;

  enum class State : std::uint8_t { kNew, kInputHalf, kKept, kWeightHalf, kDone };
  State state_ = State::kNew;
  bool keep_graph_ = false;
  NodePtr fork_;  // null once it is done
  std::vector<bool> off_path_;
  torch::autograd::edge_list others_;  // by edge of the fork; invalid on the path
  torch::autograd::variable_list kept_;
  std::shared_ptr<std::atomic<bool>> ran_again_;  // shared: an engine's thread may outlast its run
};

// Takes the place of what an unsplit fork leads to off the path; hands it on in the weight half. Or
// the place of all that a fork leads to once it has run: then it refuses what arrives.
class CaughtGradients final : public torch::autograd::Node {
 public:
  explicit CaughtGradients(const torch::autograd::Node& fork) : Node(fork.sequence_nr()) {}

  // To stand for what `edge` leads to: returns which input of this node does. REQUIRES a valid
  // edge.
  std::uint32_t replace(const torch::autograd::Edge& edge);
  // What it stands for.
  const torch::autograd::edge_list& replaced() const { return replaced_; }
  // From here on it hands on what it caught.
  void begin_weight_half();
  // Instead: appends what it stands for and what it caught, and is done.
  void give(std::vector<torch::autograd::Edge>& edges, std::vector<at::Tensor>& gradients);
  // From here on it refuses, at any input.
  void end();

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override;
  std::string name() const override { return "PipelineUnsplitWeights"; }

 private:
  enum class State : std::uint8_t { kCatches, kHandsOn, kDone };
  State state_ = State::kCatches;
  torch::autograd::edge_list replaced_;
  torch::autograd::variable_list caught_;
};

// Where the weight half begins: leads to all that is left, and has the gradients of those edges
// whose node doesn't have its own.
class WeightRoot final : public torch::autograd::Node {
 public:
  // `gradients`: by edge; may be undefined.
  WeightRoot(torch::autograd::edge_list edges, torch::autograd::variable_list gradients);

  torch::autograd::variable_list apply(torch::autograd::variable_list&& nothing) override;
  std::string name() const override { return "PipelineWeightRoot"; }
  // What the engine wants to be given at its one input: a number that nobody reads.
  static const at::Tensor& seed();

 private:
  torch::autograd::variable_list gradients_;
};

// Backward came to something that is done.
[[noreturn]] void refuse_second_run(const std::string& name);

// From here on whatever backward comes through `node` is refused.
void close_edges(torch::autograd::Node& node);

// Makes `node`'s edge `index` lead to `edge`, of a node that is in a graph already.
void redirect_edge(torch::autograd::Node& node, std::size_t index,
                   const torch::autograd::Edge& edge);

}  // namespace pipert

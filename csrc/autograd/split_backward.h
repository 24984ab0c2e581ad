// split_backward: a microbatch's backward in two halves. The input half makes the gradient that the
// stage before waits for; the weight half makes the rest, later.
//
// Note [How a backward is split]
//
// A node on a path from the outputs to the inputs (InputPaths) makes gradients for the inputs; if
// it also has an edge that leads elsewhere, to weights, it works for both halves: call it a fork.
// A fork is put behind a stand-in on the path (SplitFork), which keeps the gradients that come in
// and has the fork compute the path's edges alone. Everything off the path stays as it is. So the
// input half is one run of torch's engine that frees what it has used as it goes, but for the
// forks. In the weight half each fork runs again, behind the same stand-in, with the
// gradients that were kept, for its other edges. What lives between the halves is the forks and
// those gradients (and of each tensor that a fork saved the one node that made it, since torch's
// saved tensors hold it; that node leads nowhere any more).
//
// The stand-ins have their fork's sequence number, so the engine takes the nodes in the order in
// which a full backward would, and sums are made in the same order: the gradients are the same to
// the bit. Hooks on tensors and nodes of the path fire in the input half, once, with the gradients
// that they would see in a full backward; those of weights in the weight half.
//
// Some forks run once all the same: those that can't be run twice, or would do their work twice, or
// have a hook that looks at all of their results; and those whose weight gradient is a mere sum
// (NodeKind). They compute everything in the input half, and their weights' gradients wait for the
// weight half: which hands them on first, all at once, but where gradients of several nodes meet.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/edge.h>

#include <atomic>
#include <compare>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "autograd/node_ptr.h"

namespace pipert {

// A fork that can't be split.
struct UnsplitNode {
  std::string name;  // "MyFunctionBackward"
  std::string reason;
  friend auto operator<=>(const UnsplitNode&, const UnsplitNode&) = default;
};

// What the input half leaves to be done. Owned by the stage; run() uses it up.
class WeightBackward {
 public:
  WeightBackward() = default;  // nothing to do
  // `gradients`: by edge; undefined where the edge's node has its own.
  // `ran_again`: what the forks among them tell (see SplitFork); null where there is none.
  WeightBackward(std::vector<torch::autograd::Edge> edges, std::vector<at::Tensor> gradients,
                 std::shared_ptr<const std::atomic<bool>> ran_again = nullptr)
      : edges_(std::move(edges)),
        gradients_(std::move(gradients)),
        ran_again_(std::move(ran_again)) {}

  // Accumulates into the .grad of every leaf that is left and runs their hooks; frees everything as
  // it goes, unless `keep_graph`: then the nodes are appended to `retired`. CPU nodes run on this
  // thread. REQUIRES that the GIL is not held. Returns whether forward code ran again on the way
  // (checkpointed blocks): the input half has run it already, so that whoever puts such a backward
  // off pays for it twice.
  bool run(bool keep_graph, std::vector<NodePtr>& retired) &&;

 private:
  std::vector<torch::autograd::Edge> edges_;
  std::vector<at::Tensor> gradients_;
  std::shared_ptr<const std::atomic<bool>> ran_again_;
};

struct InputHalfOptions {
  bool keep_graph = false;  // frees nothing before the nodes of `retired` are
  bool split = true;        // false: every fork runs once, and its weights' gradients wait
  bool may_repeat = false;  // with keep_graph: where it throws, the graph is as it was
};

// Runs the input half from `roots` with `gradients` (as run_backward takes them): afterwards the
// sink has the gradients of the inputs. `inputs`: the sink; null where no input needs a gradient,
// and all is left to the weight half. With `keep_graph`, nodes are appended to `retired`. Adds the
// forks that can't be split to `unsplit`. The graph can't be run again. CPU nodes run on this
// thread. REQUIRES that the GIL is not held.
WeightBackward run_input_backward(const std::vector<torch::autograd::Edge>& roots,
                                  const std::vector<at::Tensor>& gradients,
                                  const torch::autograd::Node* inputs,
                                  const InputHalfOptions& options, std::vector<NodePtr>& retired,
                                  std::set<UnsplitNode>& unsplit);

}  // namespace pipert

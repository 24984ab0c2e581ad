// ModuleStage: a stage whose forward is somebody's code (a StageBody) and whose backward is torch's
// autograd.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "autograd/activation_store.h"
#include "autograd/gradient_sink.h"
#include "autograd/split_backward.h"
#include "base/index.h"
#include "random/random_state.h"
#include "stage/stage.h"
#include "stage/stage_body.h"

namespace pipert {

// While it lives, what autograd saves on this thread goes to a store.
class Saving {
 public:
  virtual ~Saving() = default;
};
using StartSaving = std::function<std::unique_ptr<Saving>(const std::shared_ptr<ActivationStore>&)>;

// Note [A forward that runs twice]
//
// A microbatch that is to be recomputed has its forward as any other, gradients and all, so that
// torch takes the same kernels; but the stage keeps its input and lets the graph go. Before the
// backward the forward runs again, on the same input and the same random numbers, and this time the
// graph stays. More memory than without gradients is in use during the first run only, and no more
// than during the second.
//
// Code that works in place on its input would find another one the second time. The version
// counters tell: then this microbatch keeps its graph after all, and from then on the code gets
// copies.
class ModuleStage final : public Stage {
 public:
  // `shares_gil`: whether another rank of this process may want the GIL while this stage runs.
  ModuleStage(StagePosition position, int num_microbatches, std::unique_ptr<StageBody> body,
              bool shares_gil);

  void begin(LossWeights weights, std::int64_t rows) override;
  Message forward(const RunContext& context, Message input) override;
  Message backward(const RunContext& context, Message gradients) override;
  Message backward_input(const RunContext& context, Message gradients) override;
  void backward_weight(const RunContext& context) override;
  void recompute(const RunContext& context) override;
  // REQUIRES set_saving() before the forward.
  void offload(const RunContext& context, Lane& lane) override;
  void reload(const RunContext& context, Lane& lane, Lane& compute) override;
  void reset() noexcept override;
  int num_in_flight() const override { return num_in_flight_; }
  int num_activations() const override { return num_in_flight_ - num_absent_; }

  // How forwards whose activations will go to the host save them.
  void set_saving(StartSaving start_saving) { start_saving_ = std::move(start_saving); }

  // By microbatch, whether its forward runs twice (the note above); empty: none does. Between
  // passes.
  void set_recomputed(std::vector<bool> recomputed) { recomputed_ = std::move(recomputed); }

  // By positional argument, whether other stages read it too, through whom it may get its gradient;
  // empty: none do. Before the first pass.
  void set_read_elsewhere(std::vector<bool> read_elsewhere) {
    read_elsewhere_ = std::move(read_elsewhere);
  }

  // Frees the graphs that were kept. They take the GIL if Python has seen their tensors.
  void free_retired() { retired_.clear(); }

  // A microbatch before its next action. Who records actions (RecordedStage) puts it back where
  // that failed, to run it once more; a backward then keeps its graph, for free_retired().
  class Snapshot;
  Snapshot save(Microbatch microbatch) const;
  void restore(Microbatch microbatch, Snapshot snapshot);
  void set_repeatable(bool is_repeatable) { is_repeatable_ = is_repeatable; }
  // From the next pass on forwards look whether a backward will give gradients to others than these
  // leaves; nothing: they don't.
  void watch_leaves(std::optional<std::vector<at::Tensor>> leaves);
  bool trains_others() const { return trains_others_; }  // as was seen since
  // Whether the microbatch's backward gives gradients to others than `leaves`.
  bool trains_others(Microbatch microbatch, const std::vector<at::Tensor>& leaves) const;

  const std::vector<at::Tensor>& losses() const override { return losses_; }
  const std::vector<double>& loss_weights() const override { return loss_weights_; }

  // Nodes of this stage's graphs whose backward ran unsplit in backward_input, in all passes so
  // far.
  const std::set<UnsplitNode>& unsplit() const { return unsplit_; }

 private:
  enum class Phase : std::uint8_t { kIdle, kForwardDone, kInputDone };

  // What stays between a microbatch's forward and its backward. Graph edges only: the outputs
  // themselves are freed as soon as they have been sent.
  struct InFlight {
    Phase phase = Phase::kIdle;
    std::vector<torch::autograd::Edge>
        roots;                         // by output tensor; invalid where it needs no gradient
    std::vector<at::Tensor> seeds;     // the last stage's: the loss's weight, as a tensor, or
                                       // undefined where it counts nothing
    AttachedSink sink;                 // of the inputs
    std::vector<bool> needs_gradient;  // by input tensor
    // Where a gradient of each input tensor goes; invalid where none does.
    std::vector<torch::autograd::Edge> input_edges() const;
    std::size_t num_bytes = 0;               // of inputs and outputs
    double weight = 0.0;                     // the microbatch's
    std::size_t num_outputs = 0;             // tensors
    bool ran_again = false;                  // its graph is that of a second run
    bool lacks_graph = false;                // as long as it must be recomputed; then:
    Message input;                           // of the forward
    RandomState random;                      // before the forward
    std::shared_ptr<ActivationStore> store;  // if activations will go to the host; hooks share it
    std::vector<std::shared_ptr<SavedTensor>> stored_input;  // while it is on the host
    bool on_host = false;
    bool is_absent() const { return lacks_graph || on_host; }
    bool seen_by_python = false;  // its forward ran under a hold
    bool keep_graph = false;      // from kInputDone on, as all below
    bool was_split = false;
    WeightBackward weights;
  };

  // What a backward of the microbatch starts from: edges that need a gradient and have one. What
  // came for the inputs stands first: the stage's own parts are added to it, last use first, as
  // they would be in one graph of the whole model.
  struct Seeds {
    std::vector<torch::autograd::Edge> roots;
    std::vector<at::Tensor> gradients;
  };

  bool is_recomputed(const RunContext& context) const {
    const bool is_asked =
        context.recomputes || (!recomputed_.empty() && recomputed_[as_index(context.microbatch)]);
    return context.pass.training && is_asked;
  }
  // Changes one of the two; counts.
  void set_absent(bool InFlight::* why, bool value, InFlight& state);
  // Runs the body on `input`, as the begin of a graph.
  BodyResult run_body(const RunContext& context, Message input, BodyRun run, InFlight& state);
  // The body for a microbatch that is to be recomputed: the graph goes if it can be made again.
  BodyResult run_first(const RunContext& context, Message input, InFlight& state);
  void keep_roots(const BodyResult& result, InFlight& state) const;
  void keep_loss(const RunContext& context, double weight, const at::Tensor& loss);
  // The microbatch's entry. REQUIRES that it is in `phase`.
  InFlight& entry(const RunContext& context, Phase phase);
  Seeds take_seeds(const RunContext& context, InFlight& state, Message gradients) const;
  static Message input_gradients(InFlight& state);
  bool keeps_graph(const InFlight& state, const std::vector<torch::autograd::Edge>& roots) const;
  // Runs a piece of backward; where it throws, takes back what the engine left set.
  template <typename Backward>
  void run_engine(const Backward& backward);
  double weight_of(const RunContext& context, const Message& input) const;
  void check_batches(const RunContext& context, const Message& input) const;

  StagePosition position_;
  std::unique_ptr<StageBody> body_;
  std::vector<InFlight> in_flight_;  // by microbatch
  int num_in_flight_ = 0;
  int num_absent_ = 0;  // of those in flight: their activations are not there
  StartSaving start_saving_;
  bool shares_gil_;
  bool is_repeatable_ = false;  // see Snapshot
  std::optional<std::vector<at::Tensor>> leaves_;
  bool trains_others_ = false;
  std::vector<NodePtr> retired_;
  std::set<UnsplitNode> unsplit_;
  std::vector<bool> read_elsewhere_;
  bool recomputes_ = false;       // in backward: then it is not split
  std::vector<bool> recomputed_;  // by microbatch, or empty
  bool changes_input_ = false;    // whether the code was seen to work in place on its input
  LossWeights weights_;
  std::int64_t rows_ = 0;
  std::vector<at::Tensor> losses_;
  std::vector<double> loss_weights_;
};

class ModuleStage::Snapshot {
 public:
  // Whether the action may be run once more after restore(), although it has begun. A weight half
  // may not, nor a backward of what torch.compile has made, nor one that has come to its end: they
  // leave nothing to begin with.
  bool may_repeat() const {
    return may_repeat_ && (state_.sink.node == nullptr || !state_.sink.node->is_taken());
  }

 private:
  friend class ModuleStage;
  InFlight state_;
  int num_in_flight_ = 0;
  bool may_repeat_ = false;
};

}  // namespace pipert

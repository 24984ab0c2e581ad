// HashStage: a stage whose kernels hash what they read, on the fake CUDA (hash_kernel.h). It holds
// and drops tensors as ModuleStage does, so that a message's memory is free as soon as the host is
// done with it, however late its streams are.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "autograd/activation_store.h"
#include "base/index.h"
#include "hash_kernel.h"
#include "ir/action.h"
#include "ir/placement.h"
#include "stage/stage.h"

namespace pipert {

// What the caller owns of a stage: on the stage's device.
struct HashWeights {
  at::Tensor weight;
  at::Tensor gradient;
};

// What the caller gives a pass: by microbatch, on the device of the stage that reads it.
struct HashBatch {
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> targets;
};

// Of the kernels of one action.
constexpr Word hash_tag(StageIndex stage, Microbatch microbatch) {
  return mix(static_cast<Word>(stage), static_cast<Word>(microbatch));
}

class HashStage final : public Stage {
 public:
  // `batch` and `weights` outlive the stage; what stands there when a pass begins is what it uses.
  HashStage(StageIndex stage, const Placement& placement, int num_microbatches,
            const HashBatch& batch, const HashWeights& weights);

  // The action throws once its kernels are launched, in each pass; nullopt: none does.
  void set_failing(const std::optional<Action>& action) { failing_ = action; }

  void begin(LossWeights weights, std::int64_t rows) override;
  Message forward(const RunContext& context, Message input) override;
  Message backward(const RunContext& context, Message gradients) override;
  void recompute(const RunContext& context) override;
  Message backward_input(const RunContext& context, Message gradients) override;
  void backward_weight(const RunContext& context) override;
  void offload(const RunContext& context, Lane& lane) override;
  void reload(const RunContext& context, Lane& lane, Lane& compute) override;
  void reset() noexcept override;
  const std::vector<at::Tensor>& losses() const override { return losses_; }
  const std::vector<double>& loss_weights() const override { return loss_weights_; }
  int num_in_flight() const override { return num_in_flight_; }
  int num_activations() const override { return num_in_flight_ - num_on_host_; }

 private:
  // A tensor that backward needs.
  struct Kept {
    at::Tensor tensor;
    std::shared_ptr<SavedTensor> saved;  // instead, where it may go to the host
    at::Tensor get() const { return saved != nullptr ? saved->unpack() : tensor; }
  };
  struct State {
    Kept first;  // of the input
    Kept second;
    Kept activation;
    at::Tensor gradient;  // between the halves of a backward
    std::unique_ptr<ActivationStore> store;
  };

  template <typename... Operands>
  at::Tensor make(Kernel kernel, Microbatch microbatch, const Operands&... operands) const;
  at::Tensor make_activation(Microbatch microbatch, const at::Tensor& first,
                             const at::Tensor& second) const;
  Word tag(Microbatch microbatch) const { return hash_tag(stage_, microbatch); }
  // Throws if this is the one that fails.
  void end(ActionKind kind, Microbatch microbatch) const;
  State& state(const RunContext& context) { return states_[as_index(context.microbatch)]; }
  static Kept keep(const at::Tensor& tensor, State& state);

  StageIndex stage_;
  bool is_first_;
  bool is_last_;
  const HashBatch& batch_;
  const HashWeights& weights_;
  std::optional<Action> failing_;
  std::vector<State> states_;  // by microbatch
  std::vector<at::Tensor> losses_;
  std::vector<double> loss_weights_;
  int num_in_flight_ = 0;
  int num_on_host_ = 0;
};

}  // namespace pipert

#include "hash_stage.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "base/error.h"

namespace pipert {

HashStage::HashStage(StageIndex stage, const Placement& placement, int num_microbatches,
                     const HashBatch& batch, const HashWeights& weights)
    : stage_(stage),
      is_first_(placement.is_first(stage)),
      is_last_(placement.is_last(stage)),
      batch_(batch),
      weights_(weights),
      states_(as_index(num_microbatches)) {}

void HashStage::begin(LossWeights /*weights*/, std::int64_t /*rows*/) {
  reset();
  losses_.assign(is_last_ ? states_.size() : 0, {});
  loss_weights_.assign(losses_.size(), 1.0);
}

Message HashStage::forward(const RunContext& context, Message input) {
  const Microbatch microbatch = context.microbatch;
  if (is_first_) input.tensors.assign(2, batch_.inputs[as_index(microbatch)]);
  const at::Tensor first = std::move(input.tensors[0]);
  const at::Tensor second = std::move(input.tensors[1]);
  input.tensors.clear();
  const at::Tensor activation = make_activation(microbatch, first, second);
  Message output;
  if (is_last_) {
    losses_[as_index(microbatch)] = make(Kernel::kLoss, microbatch, activation,
                                         batch_.targets[as_index(microbatch)], weights_.weight);
  } else {
    output.tensors.push_back(make(Kernel::kOutput, microbatch, activation, first));
    output.tensors.push_back(
        make(Kernel::kSecondOutput, microbatch, output.tensors[0], activation));
  }
  if (context.pass.training) {
    State& kept = state(context);
    ++num_in_flight_;
    if (context.offloads)
      kept.store =
          std::make_unique<ActivationStore>(concat("stage ", stage_, ", microbatch ", microbatch));
    kept.first = keep(first, kept);
    kept.second = keep(second, kept);
    if (!context.recomputes) kept.activation = keep(activation, kept);
  }
  end(ActionKind::kForward, microbatch);
  return output;
}

void HashStage::recompute(const RunContext& context) {
  State& kept = state(context);
  kept.activation.tensor = make_activation(context.microbatch, kept.first.get(), kept.second.get());
  end(ActionKind::kRecompute, context.microbatch);
}

Message HashStage::backward(const RunContext& context, Message gradients) {
  Message result = backward_input(context, std::move(gradients));
  backward_weight(context);
  end(ActionKind::kBackward, context.microbatch);
  return result;
}

Message HashStage::backward_input(const RunContext& context, Message gradients) {
  const Microbatch microbatch = context.microbatch;
  State& kept = state(context);
  kept.gradient = is_last_ ? make(Kernel::kLossGradient, microbatch, kept.activation.get(),
                                  batch_.targets[as_index(microbatch)])
                           : std::move(gradients.tensors[0]);
  Message result;
  if (!is_first_) {
    result.tensors.push_back(make(Kernel::kInputGradient, microbatch, kept.gradient,
                                  kept.activation.get(), kept.first.get(), kept.second.get(),
                                  weights_.weight));
    result.tensors.emplace_back();  // nobody needs the second one's
  }
  kept.first = kept.second = {};
  end(ActionKind::kInputGrad, microbatch);
  return result;
}

void HashStage::backward_weight(const RunContext& context) {
  const State kept = std::exchange(state(context), {});
  --num_in_flight_;
  launch(Kernel::kWeightGradient, tag(context.microbatch), weights_.gradient, weights_.gradient,
         kept.gradient, kept.activation.get());
  end(ActionKind::kWeightGrad, context.microbatch);
}

void HashStage::offload(const RunContext& context, Lane& lane) {
  state(context).store->offload(lane);
  ++num_on_host_;
  end(ActionKind::kOffload, context.microbatch);
}

void HashStage::reload(const RunContext& context, Lane& lane, Lane& compute) {
  state(context).store->reload(lane, compute);
  --num_on_host_;
  end(ActionKind::kReload, context.microbatch);
}

void HashStage::reset() noexcept {
  for (State& state : states_) state = {};
  num_in_flight_ = num_on_host_ = 0;
}

at::Tensor HashStage::make_activation(Microbatch microbatch, const at::Tensor& first,
                                      const at::Tensor& second) const {
  const at::Tensor inner = make(Kernel::kInner, microbatch, first, weights_.weight);
  return make(Kernel::kActivation, microbatch, inner, second);
}

template <typename... Operands>
at::Tensor HashStage::make(Kernel kernel, Microbatch microbatch,
                           const Operands&... operands) const {
  at::Tensor result = make_words(weights_.weight.device());
  launch(kernel, tag(microbatch), result, operands...);
  return result;
}

HashStage::Kept HashStage::keep(const at::Tensor& tensor, State& state) {
  if (state.store == nullptr) return {tensor, nullptr};
  return {{}, state.store->pack(tensor)};
}

void HashStage::end(ActionKind kind, Microbatch microbatch) const {
  const Action action{.kind = kind, .stage = stage_, .microbatch = microbatch};
  if (failing_ == action) throw std::runtime_error(to_string(action) + " fails");
}

}  // namespace pipert

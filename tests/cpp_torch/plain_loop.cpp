#include "plain_loop.h"

#include <algorithm>

namespace pipert {

PlainLoop::PlainLoop(const std::vector<Program>& programs, const Placement& placement)
    : placement_(placement),
      microbatches_(as_index(placement.num_stages())),
      accumulated_(microbatches_.size()),
      gradients_(microbatches_.size(), Words{}) {
  for (StageIndex stage = 0; stage < placement.num_stages(); ++stage)
    weights_.push_back(first_weight(stage));
  for (const Program& program : programs) {
    for (const Instruction& instruction : program.instructions) {
      const auto* run = std::get_if<Run>(&instruction.op);
      if (run == nullptr) continue;
      const auto stage = as_index(run->action.stage);
      const ActionKind kind = run->action.kind;
      if (kind == ActionKind::kForward) microbatches_[stage].push_back(run->action.microbatch);
      if (kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad)
        accumulated_[stage].push_back(run->action.microbatch);
    }
  }
}

std::map<std::pair<StageIndex, Microbatch>, Words> PlainLoop::run(std::uint64_t pass,
                                                                  bool training) {
  std::map<std::pair<StageIndex, Microbatch>, Words> losses;
  std::map<std::pair<StageIndex, Microbatch>, Saved> saved;
  const int size = placement_.stages_per_copy();
  for (StageIndex begin = 0; begin < placement_.num_stages(); begin += size) {
    for (const Microbatch microbatch : microbatches_[as_index(begin)]) {
      const Words target = batch_words(Kernel::kTarget, pass, microbatch);
      Words first = batch_words(Kernel::kBatch, pass, microbatch);
      Words second = first;
      for (StageIndex stage = begin; stage < begin + size; ++stage) {
        const Word tag = hash_tag(stage, microbatch);
        const Words& weight = weights_[as_index(stage)];
        const Words inner = computed(Kernel::kInner, tag, first, weight);
        const Words activation = computed(Kernel::kActivation, tag, inner, second);
        saved[{stage, microbatch}] = {first, second, activation, {}};
        if (placement_.is_last(stage))
          losses[{stage, microbatch}] = computed(Kernel::kLoss, tag, activation, target, weight);
        first = computed(Kernel::kOutput, tag, activation, first);
        second = computed(Kernel::kSecondOutput, tag, first, activation);
      }
      Words gradient{};
      for (StageIndex stage = begin + size - 1; stage >= begin; --stage) {
        const Word tag = hash_tag(stage, microbatch);
        Saved& own = saved[{stage, microbatch}];
        if (placement_.is_last(stage))
          gradient = computed(Kernel::kLossGradient, tag, own.activation, target);
        own.gradient = gradient;
        gradient = computed(Kernel::kInputGradient, tag, gradient, own.activation, own.first,
                            own.second, weights_[as_index(stage)]);
      }
    }
  }
  for (StageIndex stage = 0; training && stage < placement_.num_stages(); ++stage) {
    for (const Microbatch microbatch : accumulated_[as_index(stage)]) {
      const Saved& own = saved.at({stage, microbatch});
      Words& sum = gradients_[as_index(stage)];
      sum = computed(Kernel::kWeightGradient, hash_tag(stage, microbatch), sum, own.gradient,
                     own.activation);
    }
  }
  return losses;
}

void PlainLoop::update(std::uint64_t pass) {
  for (std::size_t stage = 0; stage < weights_.size(); ++stage)
    weights_[stage] = computed(Kernel::kUpdate, pass, weights_[stage], gradients_[stage]);
  zero_gradients();
}

void PlainLoop::zero_gradients() { std::fill(gradients_.begin(), gradients_.end(), Words{}); }

Words batch_words(Kernel kernel, std::uint64_t pass, Microbatch microbatch) {
  return computed(kernel, mix(pass, static_cast<Word>(microbatch)));
}

Words first_weight(StageIndex stage) { return computed(Kernel::kUpdate, hash_tag(stage, -1)); }

}  // namespace pipert

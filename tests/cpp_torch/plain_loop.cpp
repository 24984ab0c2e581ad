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
  saved_.clear();
  const int size = placement_.stages_per_copy();
  for (StageIndex first = 0; first < placement_.num_stages(); first += size) {
    for (const Microbatch microbatch : microbatches_[as_index(first)]) {
      const StageIndex last = first + size - 1;
      losses[{last, microbatch}] = forward(pass, microbatch, first, last);
      backward(pass, microbatch, first, last);
    }
  }
  for (StageIndex stage = 0; training && stage < placement_.num_stages(); ++stage) {
    for (const Microbatch microbatch : accumulated_[as_index(stage)]) {
      const Saved& own = saved_.at({stage, microbatch});
      Words& sum = gradients_[as_index(stage)];
      sum = computed(Kernel::kWeightGradient, hash_tag(stage, microbatch), sum, own.gradient,
                     own.activation);
    }
  }
  return losses;
}

Words PlainLoop::forward(std::uint64_t pass, Microbatch microbatch, StageIndex begin,
                         StageIndex last) {
  Words first = batch_words(Kernel::kBatch, pass, microbatch);
  Words second = first;
  for (StageIndex stage = begin; stage <= last; ++stage) {
    const Word tag = hash_tag(stage, microbatch);
    const Words inner = computed(Kernel::kInner, tag, first, weights_[as_index(stage)]);
    const Words activation = computed(Kernel::kActivation, tag, inner, second);
    saved_[{stage, microbatch}] = {first, second, activation, {}};
    first = computed(Kernel::kOutput, tag, activation, first);
    second = computed(Kernel::kSecondOutput, tag, first, activation);
  }
  return computed(Kernel::kLoss, hash_tag(last, microbatch),
                  saved_.at({last, microbatch}).activation,
                  batch_words(Kernel::kTarget, pass, microbatch), weights_[as_index(last)]);
}

void PlainLoop::backward(std::uint64_t pass, Microbatch microbatch, StageIndex first,
                         StageIndex last) {
  Words gradient = computed(Kernel::kLossGradient, hash_tag(last, microbatch),
                            saved_.at({last, microbatch}).activation,
                            batch_words(Kernel::kTarget, pass, microbatch));
  for (StageIndex stage = last; stage >= first; --stage) {
    Saved& own = saved_.at({stage, microbatch});
    own.gradient = gradient;
    gradient = computed(Kernel::kInputGradient, hash_tag(stage, microbatch), gradient,
                        own.activation, own.first, own.second, weights_[as_index(stage)]);
  }
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

#include "stage/recorded_gradients.h"

#include <c10/core/GradMode.h>

#include <utility>

namespace pipert {

RecordedGradients::RecordedGradients(const std::vector<at::Tensor>& before,
                                     const std::vector<at::Tensor>& after) {
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (after[i].defined() && !after[i].is_same(before[i]))
      made_.push_back({i, after[i], before[i].defined()});
  }
}

void RecordedGradients::keep_only(const std::vector<at::Tensor>& gradients) {
  std::erase_if(made_,
                [&](const Made& made) { return !made.gradient.is_same(gradients[made.leaf]); });
}

RecordedGradients::Others::Others(const RecordedGradients& made,
                                  const std::vector<at::Tensor>& leaves)
    : made_(made), leaves_(leaves) {
  for (const Made& one : made.made_) {
    const at::Tensor& there = leaves[one.leaf].mutable_grad();
    const bool is_other = !one.took_place && there.defined() && !there.is_same(one.gradient);
    there_.push_back(is_other ? there : at::Tensor());
  }
}

// Of two numbers it is of no importance which comes first: the sum has the same bits.
void RecordedGradients::Others::add() {
  const c10::AutoGradMode no_grad(false);
  for (std::size_t i = 0; i < there_.size(); ++i) {
    at::Tensor gradient = made_.made_[i].gradient;
    if (there_[i].defined()) gradient.add_(there_[i]);
    leaves_[made_.made_[i].leaf].mutable_grad() = std::move(gradient);
  }
}

void RecordedGradients::take_over(const std::vector<at::Tensor>& leaves) const {
  const c10::AutoGradMode no_grad(false);
  for (const Made& one : made_) {
    at::Tensor& there = leaves[one.leaf].mutable_grad();
    if (one.took_place || there.is_same(one.gradient)) continue;
    at::Tensor gradient = one.gradient;
    there.defined() ? gradient.copy_(there) : gradient.zero_();
    there = std::move(gradient);
  }
}

}  // namespace pipert

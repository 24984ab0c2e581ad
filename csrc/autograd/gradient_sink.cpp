#include "autograd/gradient_sink.h"

#include <ATen/ops/clone.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

namespace pipert {

at::Tensor owned(at::Tensor gradient) {
  if (!gradient.defined()) return gradient;
  const bool is_shared =
      gradient.use_count() > 1 || (gradient.has_storage() && gradient.storage().use_count() > 1);
  // A view with gaps goes on as it is: torch adds to none in place and makes none a .grad. A copy
  // would have no gaps, and sums over it another order.
  return is_shared && gradient.is_non_overlapping_and_dense() ? gradient.clone() : gradient;
}

torch::autograd::variable_list GradientSink::apply(torch::autograd::variable_list&& gradients) {
  TORCH_CHECK(
      !is_taken_,
      "backward comes to the stage's input a second time: a tensor that was computed in one "
      "microbatch is used in another");
  gradients_ = std::move(gradients);
  return {};
}

std::vector<at::Tensor> GradientSink::take() {
  is_taken_ = true;
  gradients_.resize(num_inputs());
  auto taken = std::exchange(gradients_, {});
  for (at::Tensor& gradient : taken) gradient = owned(std::move(gradient));
  return taken;
}

AttachedSink attach_sink(const std::vector<at::Tensor>& tensors,
                         const std::vector<bool>& requires_grad) {
  if (std::none_of(requires_grad.begin(), requires_grad.end(), [](bool flag) { return flag; }))
    return {};
  AttachedSink attached = make_node<GradientSink>();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!requires_grad[i]) continue;
    TORCH_CHECK_VALUE(
        torch::autograd::isDifferentiableType(tensors[i].scalar_type()), "tensor ", i,
        " of a stage's input can't require a gradient: expected a floating or complex dtype, got ",
        tensors[i].scalar_type());
    at::Tensor tensor = tensors[i];
    torch::autograd::create_gradient_edge(tensor, attached.owner);
  }
  return attached;
}

}  // namespace pipert

#include "autograd/leaves.h"

#include <c10/util/Exception.h>

namespace pipert {
namespace {

void add_tensor(Fingerprint& fingerprint, const at::Tensor& tensor) {
  if (!tensor.defined()) return fingerprint.add(1);
  if (tensor.has_storage())
    fingerprint.add_address(tensor.const_data_ptr());
  else
    fingerprint.add(2);
  fingerprint.add(static_cast<std::uint64_t>(tensor.scalar_type()));
  for (const std::int64_t size : tensor.sizes()) fingerprint.add(static_cast<std::uint64_t>(size));
  for (const std::int64_t stride : tensor.strides())
    fingerprint.add(static_cast<std::uint64_t>(stride));
}

}  // namespace

void Leaves::add_to(Fingerprint& fingerprint) const {
  for (const at::Tensor& tensor : tensors_) {
    add_tensor(fingerprint, tensor);
    fingerprint.add(static_cast<std::uint64_t>(tensor.requires_grad()));
    if (tensor.requires_grad()) add_tensor(fingerprint, tensor.grad());
  }
}

std::vector<at::Tensor> Leaves::gradients() const {
  std::vector<at::Tensor> gradients;
  gradients.reserve(tensors_.size());
  for (const at::Tensor& tensor : tensors_)
    gradients.push_back(tensor.requires_grad() ? tensor.grad() : at::Tensor());
  return gradients;
}

void Leaves::set_gradients(const std::vector<at::Tensor>& gradients) {
  TORCH_INTERNAL_ASSERT(gradients.size() == tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensors_[i].requires_grad()) continue;
    at::Tensor& gradient = tensors_[i].mutable_grad();
    if (!gradient.is_same(gradients[i])) gradient = gradients[i];
  }
}

}  // namespace pipert

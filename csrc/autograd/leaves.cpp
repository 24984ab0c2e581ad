#include "autograd/leaves.h"

#include <c10/util/Exception.h>

namespace pipert {
namespace {

// FNV-1a over words, with a shift so that high bits reach low ones.
class Fingerprint {
 public:
  void add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3;
    value_ ^= value_ >> 29;
  }
  void add(const at::Tensor& tensor) {
    if (!tensor.defined()) return add(1);
    add(tensor.has_storage() ? reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) : 2);
    add(static_cast<std::uint64_t>(tensor.scalar_type()));
    for (const std::int64_t stride : tensor.strides()) add(static_cast<std::uint64_t>(stride));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace

std::uint64_t Leaves::fingerprint() const {
  Fingerprint fingerprint;
  for (const at::Tensor& tensor : tensors_) {
    fingerprint.add(tensor);
    fingerprint.add(static_cast<std::uint64_t>(tensor.requires_grad()));
    if (tensor.requires_grad()) fingerprint.add(tensor.grad());
  }
  return fingerprint.value();
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

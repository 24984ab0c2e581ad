#include "stage/message_form.h"

#include <ATen/ops/empty_strided.h>

#include <algorithm>

namespace pipert {

MessageForm::MessageForm(const Message& message)
    : requires_grad_(message.requires_grad),
      structure_(message.structure),
      weight_(message.weight),
      batch_size_(message.batch_size) {
  for (const at::Tensor& tensor : message.tensors) tensors_.push_back(form_of(tensor));
}

MessageForm::TensorForm MessageForm::form_of(const at::Tensor& tensor) {
  TensorForm form;
  form.is_defined = tensor.defined();
  if (!form.is_defined) return form;
  form.dtype = tensor.scalar_type();
  form.device = tensor.device();
  form.is_plain = tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_conj() &&
                  !tensor.is_neg() && !tensor.key_set().has(c10::DispatchKey::Python) &&
                  tensor.is_non_overlapping_and_dense();
  if (!form.is_plain) return form;
  form.sizes = tensor.sizes().vec();
  form.strides = tensor.strides().vec();
  return form;
}

bool MessageForm::matches(const TensorForm& form, const at::Tensor& tensor) {
  if (form.is_defined != tensor.defined()) return false;
  if (!form.is_defined) return true;
  return form.is_plain && tensor.layout() == at::kStrided && tensor.scalar_type() == form.dtype &&
         tensor.device() == form.device && tensor.sizes() == form.sizes &&
         tensor.strides() == form.strides && !tensor.is_conj() && !tensor.is_neg();
}

bool MessageForm::matches(const Message& message) const {
  if (weight_ != message.weight || batch_size_ != message.batch_size) return false;
  if (requires_grad_ != message.requires_grad) return false;
  const bool is_same = structure_ == message.structure;
  const bool has_both = structure_ != nullptr && message.structure != nullptr;
  if (!is_same && !(has_both && *structure_ == *message.structure)) return false;
  return std::equal(
      tensors_.begin(), tensors_.end(), message.tensors.begin(), message.tensors.end(),
      [](const TensorForm& form, const at::Tensor& tensor) { return matches(form, tensor); });
}

std::string MessageForm::obstacle(const c10::Device& device) const {
  for (const TensorForm& form : tensors_) {
    if (!form.is_defined) continue;
    if (form.device != device)
      return "a message has a tensor on " + form.device.str() + ", the rank is on " + device.str();
    if (!form.is_plain) return "a message has a tensor that is not dense in memory";
  }
  return {};
}

std::vector<at::Tensor> MessageForm::make_tensors() const {
  std::vector<at::Tensor> tensors;
  for (const TensorForm& form : tensors_) {
    tensors.emplace_back();
    if (!form.is_defined) continue;
    const auto options = at::TensorOptions().dtype(form.dtype).device(form.device);
    tensors.back() = at::empty_strided(form.sizes, form.strides, options);
  }
  return tensors;
}

}  // namespace pipert

#include "stage/input_check.h"

#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

bool same_part(const InputPart& left, const InputPart& right) {
  if (left.present != right.present) return false;
  if (left.structure == right.structure) return true;
  return left.structure != nullptr && right.structure != nullptr &&
         *left.structure == *right.structure;
}

bool alike(const at::Tensor& tensor, const TensorSignature& signature) {
  return tensor.defined() && tensor.layout() == at::kStrided &&
         tensor.scalar_type() == signature.dtype && tensor.device() == signature.device &&
         tensor.requires_grad() == signature.requires_grad &&
         static_cast<std::size_t>(tensor.dim()) == signature.sizes.size();
}

std::int64_t value_of(const SizeStep& step, const std::vector<at::Tensor>& tensors,
                      const std::vector<std::int64_t>& values) {
  switch (step.kind) {
    case SizeStep::Kind::kConstant:
      return step.constant;
    case SizeStep::Kind::kSize:
      return tensors[step.left].sizes()[step.right];
    case SizeStep::Kind::kStride:
      return tensors[step.left].strides()[step.right];
    case SizeStep::Kind::kOp:
      return apply(step.op, values[step.left], values[step.right]);
  }
  throw InternalError("a step of no known kind");
}

}  // namespace

std::size_t num_tensors(const InputPart& part) {
  if (!part.present) return 0;
  return part.structure == nullptr ? 1 : num_tensors(*part.structure);
}

bool same_structure(const NativeInput& left, const NativeInput& right) {
  for (std::size_t i = 0; i < left.parts.size(); ++i) {
    if (!same_part(left.parts[i], right.parts[i])) return false;
  }
  return true;
}

TensorSignature::TensorSignature(const at::Tensor& tensor)
    : dtype(tensor.scalar_type()),
      device(tensor.device()),
      requires_grad(tensor.requires_grad()),
      sizes(tensor.sizes().vec()),
      strides(tensor.strides().vec()) {}

InputCheck::InputCheck(std::vector<SizeStep> steps, std::vector<std::uint32_t> conditions)
    : steps_(std::move(steps)), conditions_(std::move(conditions)), values_(steps_.size()) {
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const SizeStep& step = steps_[i];
    if (step.kind != SizeStep::Kind::kOp) continue;
    if (step.left >= i || step.right >= i)
      throw ValueError(concat("step ", i, " reads a step that doesn't come before it"));
  }
  for (const std::uint32_t condition : conditions_) {
    if (condition >= steps_.size())
      throw ValueError(concat("a condition reads step ", condition, " of ", steps_.size()));
  }
}

void InputCheck::set_example(const NativeInput& example) {
  structure_.parts = example.parts;
  tensors_.clear();
  for (const at::Tensor& tensor : example.tensors) tensors_.emplace_back(tensor);
  for (const SizeStep& step : steps_) {
    if (step.kind != SizeStep::Kind::kSize && step.kind != SizeStep::Kind::kStride) continue;
    if (step.left >= tensors_.size() || step.right >= tensors_[step.left].sizes.size())
      throw ValueError(concat("no dimension ", step.right, " of tensor ", step.left));
  }
}

bool InputCheck::accepts(const NativeInput& input) {
  if (input.tensors.size() != tensors_.size() || !same_structure(input, structure_)) return false;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!alike(input.tensors[i], tensors_[i])) return false;
  }
  return accepts_sizes(input.tensors);
}

bool InputCheck::accepts_sizes(const std::vector<at::Tensor>& tensors) {
  try {
    for (std::size_t i = 0; i < steps_.size(); ++i)
      values_[i] = value_of(steps_[i], tensors, values_);
  } catch (const ValueError&) {  // a division by zero: the export didn't see these sizes
    return false;
  }
  for (const std::uint32_t condition : conditions_) {
    if (values_[condition] == 0) return false;
  }
  return true;
}

}  // namespace pipert

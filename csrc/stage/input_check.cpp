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

bool same_structure(const std::array<InputPart, 3>& left, const std::array<InputPart, 3>& right) {
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (!same_part(left[i], right[i])) return false;
  }
  return true;
}

bool alike(const at::Tensor& tensor, const TensorSignature& signature) {
  return tensor.defined() && tensor.layout() == at::kStrided &&
         tensor.scalar_type() == signature.dtype && tensor.device() == signature.device &&
         tensor.requires_grad() == signature.requires_grad &&
         static_cast<std::size_t>(tensor.dim()) == signature.sizes.size();
}

std::size_t first_position(const std::vector<at::Tensor>& tensors, std::size_t of) {
  std::size_t first = 0;
  while (!tensors[first].is_same(tensors[of])) ++first;
  return first;
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

TensorSignature::TensorSignature(const at::Tensor& tensor)
    : dtype(tensor.scalar_type()),
      device(tensor.device()),
      requires_grad(tensor.requires_grad()),
      sizes(tensor.sizes().vec()),
      strides(tensor.strides().vec()) {}

bool TensorSignature::describes(const at::Tensor& tensor) const {
  return alike(tensor, *this) && tensor.sizes() == sizes && tensor.strides() == strides;
}

InputSignature::InputSignature(const NativeInput& input) : parts(input.parts) {
  for (std::size_t i = 0; i < input.tensors.size(); ++i) {
    tensors.emplace_back(input.tensors[i]);
    first_positions.push_back(first_position(input.tensors, i));
  }
}

bool InputSignature::describes(const NativeInput& input) const {
  if (!describes_kind(input)) return false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].describes(input.tensors[i])) return false;
  }
  return true;
}

bool InputSignature::describes_kind(const NativeInput& input) const {
  if (input.tensors.size() != tensors.size() || !same_structure(input.parts, parts)) return false;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!alike(input.tensors[i], tensors[i])) return false;
    if (first_position(input.tensors, i) != first_positions[i]) return false;
  }
  return true;
}

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

void InputCheck::set_example(InputSignature example) {
  example_ = std::move(example);
  const auto& tensors = example_.tensors;
  for (const SizeStep& step : steps_) {
    if (step.kind != SizeStep::Kind::kSize && step.kind != SizeStep::Kind::kStride) continue;
    if (step.left >= tensors.size() || step.right >= tensors[step.left].sizes.size())
      throw ValueError(concat("no dimension ", step.right, " of tensor ", step.left));
  }
}

bool InputCheck::accepts(const NativeInput& input) {
  return example_.describes_kind(input) && accepts_sizes(input.tensors);
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

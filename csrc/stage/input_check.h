// InputCheck: which inputs a graph was exported for. A graph holds for tensors of the dtypes,
// devices, layouts and sizes that the export took for granted; every other size may be what it
// likes.
//
// Made once, then read by the rank's thread.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/structure.h"
#include "stage/scalar_op.h"

namespace pipert {

// One of the values of a call, flat: its positional arguments, its keyword arguments, ...
struct InputPart {
  bool present = false;
  std::shared_ptr<const Structure> structure;  // as in Message
};

// The arguments of one call. Tensors of all parts stand in a row.
struct NativeInput {
  std::vector<at::Tensor> tensors;
  std::array<InputPart, 3> parts;
};

// How many of the input's tensors belong to the part.
std::size_t num_tensors(const InputPart& part);

// What a graph's export may depend on, of one tensor.
struct TensorSignature {
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::Device device{c10::kCPU};
  bool requires_grad = false;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;

  // REQUIRES a tensor with strides.
  explicit TensorSignature(const at::Tensor& tensor);
  // Whether it is the tensor's.
  bool describes(const at::Tensor& tensor) const;
};

// An input without its tensors, and what an export may depend on of them.
struct InputSignature {
  std::array<InputPart, 3> parts;
  std::vector<TensorSignature> tensors;
  // For each tensor, the position of the first that is the same object: Python tells it (`a is b`).
  std::vector<std::size_t> first_positions;

  InputSignature() = default;
  explicit InputSignature(const NativeInput& input);
  // Whether it is the input's.
  bool describes(const NativeInput& input) const;
  // Whether it is so but for sizes and strides.
  bool describes_kind(const NativeInput& input) const;
};

// A step of a computation with sizes; its operands are earlier steps.
struct SizeStep {
  enum class Kind : std::uint8_t { kConstant, kSize, kStride, kOp };
  Kind kind = Kind::kConstant;
  ScalarOp op = ScalarOp::kAdd;
  std::int64_t constant = 0;  // kConstant
  std::uint32_t left = 0;     // kSize, kStride: the tensor; kOp: a step
  std::uint32_t right = 0;    // kSize, kStride: the dimension; kOp: a step
};

class InputCheck {
 public:
  InputCheck() = default;
  // `steps` in order; `conditions`: the steps that must not be 0.
  InputCheck(std::vector<SizeStep> steps, std::vector<std::uint32_t> conditions);

  // The example that it was exported with: dtypes, devices, ranks, requires_grad, and which tensors
  // are one must be the same.
  void set_example(InputSignature example);

  bool accepts(const NativeInput& input);

 private:
  bool accepts_sizes(const std::vector<at::Tensor>& tensors);

  std::vector<SizeStep> steps_;
  std::vector<std::uint32_t> conditions_;
  std::vector<std::int64_t> values_;  // by step
  InputSignature example_;
};

}  // namespace pipert

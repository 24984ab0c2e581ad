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
bool same_structure(const NativeInput& left, const NativeInput& right);

// What a graph's export may depend on, of one tensor.
struct TensorSignature {
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::Device device{c10::kCPU};
  bool requires_grad = false;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;

  explicit TensorSignature(const at::Tensor& tensor);
  friend bool operator==(const TensorSignature&, const TensorSignature&) = default;
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

  // The example that it was exported with: dtypes, devices, ranks and requires_grad must be the
  // same.
  void set_example(const NativeInput& example);

  // REQUIRES the same number of tensors as in the example's, if their structure is the same.
  bool accepts(const NativeInput& input);

 private:
  bool accepts_sizes(const std::vector<at::Tensor>& tensors);

  std::vector<SizeStep> steps_;
  std::vector<std::uint32_t> conditions_;
  std::vector<std::int64_t> values_;  // by step
  NativeInput structure_;             // without tensors
  std::vector<TensorSignature> tensors_;
};

}  // namespace pipert

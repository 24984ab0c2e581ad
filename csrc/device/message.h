// Message: what one stage hands to another: tensors, the structure that they stand in, and which
// step and microbatch they belong to. A value; whoever holds it owns the tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/ids.h"
#include "base/structure.h"
#include "device/lane.h"

namespace pipert {

// Instead of a number of rows: the caller had cut the batch.
inline constexpr std::int64_t kInPieces = -1;

// Instead of a weight: the first stage's rank was given nothing that has rows.
inline constexpr double kUnknownWeight = -1.0;

struct Message {
  MessageKey key;
  std::int64_t epoch =
      0;                  // counts the passes of a pipeline: messages of an earlier one are refused
  bool training = true;   // of the pass: a rank that evaluates refuses those of one that trains
  std::int64_t step = 0;  // of the pass, as the sender's user counts them
  // Of this microbatch in the mean loss, or kUnknownWeight; activations alone.
  double weight = 0.0;
  // Rows of the whole batch, or kInPieces; 0 where nothing in it has rows; likewise.
  std::int64_t batch_size = 0;

  // Any shape, dtype and device. A gradient that nobody needs is an undefined tensor.
  std::vector<at::Tensor> tensors;
  // By tensor: whether the receiver must send a gradient back for it.
  std::vector<bool> requires_grad;
  // Null when the value is one tensor, and for gradients (then it is the list of `tensors`).
  std::shared_ptr<const Structure> structure;  // shared: the same for all microbatches

  // Set by a lane of the sender once the tensors are written; null on the CPU, where they always
  // are. Shared: the sender's lane and the receiver's each outlive the other's use of it by an
  // unknown time.
  std::shared_ptr<Mark> ready;
};

}  // namespace pipert

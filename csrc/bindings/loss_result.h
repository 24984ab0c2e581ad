// LossResult: what a loss function returned, taken apart: a tensor, (loss, metrics), or a dict of
// losses, which are added up and are metrics too. A value.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/python_tree.h"

namespace pipert {

// By name, in the order in which the loss function gave them: detached, of one element.
using Metrics = std::vector<std::pair<std::string, at::Tensor>>;

struct LossResult {
  at::Tensor loss;
  Metrics metrics;
};

// TypeError or ValueError for anything else. Needs no GIL.
LossResult loss_result(const FlatValue& returned);

// What the metrics of microbatches are to a caller: by name, of shape (num_microbatches,); NaN
// where one lacks it. `of_microbatches`: by microbatch, a dict of tensors. REQUIRES the GIL.
pybind11::dict stack_metrics(const pybind11::dict& of_microbatches, int num_microbatches);

}  // namespace pipert

// Losses: those of one pass, by microbatch. Each copy of the model has those of its microbatches,
// so they are put together from wherever a last stage computed some.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace pipert {

struct Losses {
  std::vector<at::Tensor> values;  // detached, of one element; undefined where nobody here knows it
  std::vector<double> weights;     // of each in the mean; 0 where the value is undefined

  bool empty() const { return values.empty(); }
  // Takes over what `other` knows. REQUIRES as many microbatches, or none on either side.
  void merge(const Losses& other);
};

}  // namespace pipert

// Cuts a batch into microbatches along dimension 0. REQUIRES the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "bindings/python_tree.h"

namespace pipert {

// Size of dimension 0 of the first tensor in `value` that has one; nothing if there is none.
std::optional<std::int64_t> batch_size(pybind11::handle value);

// The pieces of a batch's tensors, for one pass. A tensor that stands in several places is cut
// once: its pieces are one object in each of them, and count one version.
class RowPieces {
 public:
  explicit RowPieces(int num_microbatches) : num_microbatches_(num_microbatches) {}

  // REQUIRES that the tensor lives as long as this.
  const std::vector<at::Tensor>& of(const at::Tensor& tensor);
  int num_microbatches() const { return num_microbatches_; }

 private:
  int num_microbatches_;
  std::unordered_map<const c10::TensorImpl*, std::vector<at::Tensor>> pieces_;
};

// The pieces of `value`, as torch.tensor_split cuts: sizes differ by one at most, the longer ones
// first. Tensors without dimensions and values that aren't tensors go into every piece as they are.
// ValueError if a tensor's dimension 0 is not `size`, or if size < num_microbatches; `what` names
// the value.
std::vector<pybind11::object> cut_batch(pybind11::handle value, RowPieces& rows, std::int64_t size,
                                        const std::string& what);

// ValueError or TypeError if `value` can't be cut like that.
void check_cut(pybind11::handle value, int num_microbatches, std::int64_t size,
               const std::string& what);

// The pieces that cut_batch gives, flat. REQUIRES that `value` is plain (python_tree.h).
std::vector<FlatValue> cut_batch_flat(pybind11::handle value, RowPieces& rows, std::int64_t size,
                                      const std::string& what);

// The share of each piece in the batch.
std::vector<double> batch_weights(int num_microbatches, std::int64_t size);

}  // namespace pipert

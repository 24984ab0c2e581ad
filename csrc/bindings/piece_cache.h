// PieceCache: the pieces of what a batch has, for one pass. What stands in several places is cut
// once: its pieces are one object in each of them, and count one version. REQUIRES the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

namespace pipert {

class PieceCache {
 public:
  explicit PieceCache(int num_microbatches) : num_microbatches_(num_microbatches) {}

  int num_microbatches() const { return num_microbatches_; }

  // As torch.tensor_split cuts: sizes differ by one at most, the longer ones first.
  const std::vector<at::Tensor>& of(const at::Tensor& tensor, std::int64_t dim);
  // Of another object, which `cut` cuts; `by` tells ways to cut it apart.
  const std::vector<pybind11::object>& of(
      pybind11::handle value, const void* by,
      const std::function<std::vector<pybind11::object>()>& cut);

 private:
  int num_microbatches_;
  // With what they are of, which holds its address.
  struct CutTensor {
    at::Tensor whole;
    std::vector<at::Tensor> pieces;
  };
  struct CutObject {
    pybind11::object whole;
    std::vector<pybind11::object> pieces;
  };
  std::map<std::pair<const c10::TensorImpl*, std::int64_t>, CutTensor> tensors_;
  std::map<std::pair<PyObject*, const void*>, CutObject> objects_;
};

}  // namespace pipert

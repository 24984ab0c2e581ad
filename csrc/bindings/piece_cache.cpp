#include "bindings/piece_cache.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

namespace py = pybind11;

namespace pipert {
namespace {

// Whether pieces may lie in the memory of others, as rows of an expanded tensor do, and windows
// that slide.
bool pieces_overlap(const at::Tensor& tensor, std::int64_t dim) {
  if (tensor.layout() != at::kStrided || tensor.size(dim) < 2) return false;
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;  // (stride, size)
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1) dimensions.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dimensions.begin(), dimensions.end());
  std::int64_t extent = 0;  // of the dimensions with smaller strides
  for (const auto& [stride, size] : dimensions) {
    if (stride <= extent) return true;
    extent += (size - 1) * stride;
  }
  return false;
}

// Each piece counts its own versions, as no view would: a stage that works in place on one
// microbatch has not changed what autograd saved of another. (One that needs a gradient stays a
// view; so do a subclass, and pieces that share their memory.)
std::vector<at::Tensor> split(const at::Tensor& tensor, int num_microbatches, std::int64_t dim) {
  const bool is_plain = !tensor.key_set().has(c10::DispatchKey::Python);
  if (tensor.requires_grad() || tensor.is_inference() || !is_plain || pieces_overlap(tensor, dim))
    return tensor.tensor_split(num_microbatches, dim);
  const at::AutoDispatchBelowADInplaceOrView no_views;
  return tensor.tensor_split(num_microbatches, dim);
}

}  // namespace

const std::vector<at::Tensor>& PieceCache::of(const at::Tensor& tensor, std::int64_t dim) {
  const auto [entry, is_new] = tensors_.try_emplace({tensor.unsafeGetTensorImpl(), dim});
  if (is_new) entry->second = {tensor, split(tensor, num_microbatches_, dim)};
  return entry->second.pieces;
}

const std::vector<py::object>& PieceCache::of(py::handle value, const void* by,
                                              const std::function<std::vector<py::object>()>& cut) {
  const std::pair key(value.ptr(), by);
  auto found = objects_.find(key);
  if (found == objects_.end()) {
    std::vector<py::object> pieces = cut();
    py::object whole = py::reinterpret_borrow<py::object>(value);
    found = objects_.emplace(key, CutObject{std::move(whole), std::move(pieces)}).first;
  }
  return found->second.pieces;
}

}  // namespace pipert

#include "bindings/batch.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "bindings/recursion_guard.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Pieces = std::vector<py::object>;

// Whether rows may lie in the memory of others, as those of an expanded tensor do, and windows that
// slide.
bool rows_overlap(const at::Tensor& tensor) {
  if (tensor.layout() != at::kStrided || tensor.size(0) < 2) return false;
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
std::vector<at::Tensor> split_rows(const at::Tensor& tensor, int num_microbatches) {
  const bool is_plain = !tensor.key_set().has(c10::DispatchKey::Python);
  if (tensor.requires_grad() || tensor.is_inference() || !is_plain || rows_overlap(tensor))
    return tensor.tensor_split(num_microbatches);
  const at::AutoDispatchBelowADInplaceOrView no_views;
  return tensor.tensor_split(num_microbatches);
}

void check_rows(const at::Tensor& tensor, std::int64_t size, const std::string& what) {
  if (tensor.size(0) == size) return;
  throw ValueError(concat(what, " has ", tensor.size(0), " rows, expected ", size,
                          " (the batch size, dimension 0 of the first tensor)"));
}

// A namedtuple, say, would go whole to every microbatch.
void refuse_hidden_tensors(py::handle value, const std::string& what) {
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) return;
  for (const py::handle element : value) {
    if (!THPVariable_Check(element.ptr())) continue;
    throw TypeError(concat(what,
                           " must hold its tensors in tuples, lists and dicts to be cut, got ",
                           Py_TYPE(value.ptr())->tp_name));
  }
}

// Every tensor that will be cut.
void check_all_rows(py::handle value, std::int64_t size, const std::string& what) {
  const RecursionGuard guard;
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    if (tensor.dim() > 0) check_rows(tensor, size, what);
  } else if (PyTuple_CheckExact(value.ptr()) || PyList_CheckExact(value.ptr())) {
    std::size_t at = 0;
    for (const py::handle element : value)
      check_all_rows(element, size, concat(what, "[", at++, "]"));
  } else if (PyDict_Check(value.ptr())) {
    for (const auto& [key, element] : py::reinterpret_borrow<py::dict>(value))
      check_all_rows(element, size, concat(what, "[", py::cast<std::string>(py::repr(key)), "]"));
  } else {
    refuse_hidden_tensors(value, what);
  }
}

void check_batch_size(int num_microbatches, std::int64_t size, const std::string& what) {
  if (size >= num_microbatches) return;
  throw ValueError(concat("the batch must have at least num_microbatches (", num_microbatches,
                          ") rows, ", what, " has ", size));
}

class Cutter {
 public:
  Cutter(RowPieces& rows, std::int64_t size)
      : rows_(rows), num_microbatches_(rows.num_microbatches()), size_(size) {}

  Pieces cut(py::handle value, const std::string& what) const {
    const RecursionGuard guard;
    if (THPVariable_Check(value.ptr()))
      return cut_tensor(THPVariable_Unpack(value.ptr()), value, what);
    if (PyTuple_CheckExact(value.ptr()) || PyList_CheckExact(value.ptr()))
      return cut_sequence(value, what);
    if (PyDict_Check(value.ptr())) return cut_dict(py::reinterpret_borrow<py::dict>(value), what);
    refuse_hidden_tensors(value, what);
    return repeat(value);
  }

 private:
  Pieces repeat(py::handle value) const {
    return Pieces(as_index(num_microbatches_), py::reinterpret_borrow<py::object>(value));
  }

  Pieces cut_tensor(const at::Tensor& tensor, py::handle value, const std::string& what) const {
    if (tensor.dim() == 0) return repeat(value);
    check_rows(tensor, size_, what);
    Pieces pieces;
    pieces.reserve(as_index(num_microbatches_));
    for (const at::Tensor& piece : rows_.of(tensor)) {
      pieces.push_back(py::reinterpret_steal<py::object>(THPVariable_Wrap(piece)));
    }
    return pieces;
  }

  Pieces cut_sequence(py::handle value, const std::string& what) const {
    const bool is_tuple = PyTuple_CheckExact(value.ptr()) != 0;
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(value.ptr());
    Pieces pieces;
    for (int i = 0; i < num_microbatches_; ++i) {
      pieces.push_back(
          py::reinterpret_steal<py::object>(is_tuple ? PyTuple_New(size) : PyList_New(size)));
    }
    for (Py_ssize_t at = 0; at < size; ++at) {
      Pieces elements = cut(PySequence_Fast_GET_ITEM(value.ptr(), at), concat(what, "[", at, "]"));
      for (std::size_t i = 0; i < elements.size(); ++i) {
        PyObject* piece = pieces[i].ptr();
        PyObject* element = elements[i].release().ptr();
        if (is_tuple) {
          PyTuple_SET_ITEM(piece, at, element);
        } else {
          PyList_SET_ITEM(piece, at, element);
        }
      }
    }
    return pieces;
  }

  Pieces cut_dict(const py::dict& value, const std::string& what) const {
    Pieces pieces;
    for (int i = 0; i < num_microbatches_; ++i) pieces.push_back(py::dict());
    for (const auto& [key, element] : value) {
      const Pieces elements =
          cut(element, concat(what, "[", py::cast<std::string>(py::repr(key)), "]"));
      for (std::size_t i = 0; i < elements.size(); ++i) pieces[i][key] = elements[i];
    }
    return pieces;
  }

  RowPieces& rows_;
  int num_microbatches_;
  std::int64_t size_;
};

}  // namespace

const std::vector<at::Tensor>& RowPieces::of(const at::Tensor& tensor) {
  const auto [entry, is_new] = pieces_.try_emplace(tensor.unsafeGetTensorImpl());
  if (is_new) entry->second = split_rows(tensor, num_microbatches_);
  return entry->second;
}

std::optional<std::int64_t> batch_size(py::handle value) {
  const RecursionGuard guard;
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    if (tensor.dim() == 0) return std::nullopt;
    return tensor.size(0);
  }
  if (PyTuple_CheckExact(value.ptr()) || PyList_CheckExact(value.ptr())) {
    for (const py::handle element : value) {
      if (const auto size = batch_size(element)) return size;
    }
  }
  if (PyDict_Check(value.ptr())) {
    for (const auto& [key, element] : py::reinterpret_borrow<py::dict>(value)) {
      if (const auto size = batch_size(element)) return size;
    }
  }
  return std::nullopt;
}

std::vector<py::object> cut_batch(py::handle value, RowPieces& rows, std::int64_t size,
                                  const std::string& what) {
  check_batch_size(rows.num_microbatches(), size, what);
  return Cutter(rows, size).cut(value, what);
}

void check_cut(py::handle value, int num_microbatches, std::int64_t size, const std::string& what) {
  check_batch_size(num_microbatches, size, what);
  check_all_rows(value, size, what);
}

std::vector<FlatValue> cut_batch_flat(py::handle value, RowPieces& rows, std::int64_t size,
                                      const std::string& what) {
  check_cut(value, rows.num_microbatches(), size, what);
  const FlatValue whole = flatten(value.ptr(), what);
  std::vector<FlatValue> pieces(as_index(rows.num_microbatches()));
  for (FlatValue& piece : pieces) piece.structure = whole.structure;
  for (const at::Tensor& tensor : whole.tensors) {
    if (tensor.dim() == 0) {
      for (FlatValue& piece : pieces) piece.tensors.push_back(tensor);
      continue;
    }
    const auto& parts = rows.of(tensor);
    for (std::size_t i = 0; i < parts.size(); ++i) pieces[i].tensors.push_back(parts[i]);
  }
  return pieces;
}

std::vector<double> batch_weights(int num_microbatches, std::int64_t size) {
  std::vector<double> weights;
  const std::int64_t rows = size / num_microbatches;
  const std::int64_t longer = size % num_microbatches;
  for (int i = 0; i < num_microbatches; ++i) {
    weights.push_back(static_cast<double>(rows + (i < longer ? 1 : 0)) / static_cast<double>(size));
  }
  return weights;
}

}  // namespace pipert

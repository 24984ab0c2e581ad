#include "bindings/batch.h"

#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "bindings/own_cut.h"
#include "bindings/recursion_guard.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Pieces = std::vector<py::object>;

// Of a tensor's dimensions, what is none.
constexpr std::int64_t kNotCut = -1;

void check_rows(const at::Tensor& tensor, std::int64_t dim, std::int64_t rows,
                const std::string& what) {
  if (tensor.size(dim) == rows) return;
  const std::string along = dim == 0 ? "" : concat(" in dimension ", dim);
  throw ValueError(concat(what, " has ", tensor.size(dim), " rows", along, ", expected ", rows,
                          " (the batch size, that of the first tensor that is cut)"));
}

void check_batch_size(int num_microbatches, std::int64_t rows, const std::string& what) {
  if (rows >= num_microbatches) return;
  throw ValueError(concat("the batch must have at least num_microbatches (", num_microbatches,
                          ") rows, ", what, " has ", rows));
}

// Of a tensor that stands at `place`: the dimension in which it is cut.
std::int64_t cut_dim(const at::Tensor& tensor, const SpecPlace& place, const std::string& what) {
  return place.is_whole() || tensor.dim() == 0 ? kNotCut : place.dim(tensor, what);
}

// A tuple of some other kind, say, would go whole to every microbatch.
void refuse_hidden_tensors(py::handle value, const std::string& what) {
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) return;
  for (const py::handle element : value) {
    if (!THPVariable_Check(element.ptr())) continue;
    throw TypeError(concat(what,
                           " must hold its tensors in tuples, lists and dicts to be cut, got ",
                           Py_TYPE(value.ptr())->tp_name));
  }
}

// Whether there is anything to cut in a container.
bool holds_batch(const Container& container) {
  const RecursionGuard guard;
  for (std::size_t i = 0; i < container.size(); ++i) {
    const py::object& element = container.element(i);
    if (THPVariable_Check(element.ptr()) || cuts_itself(element)) return true;
    const auto inner = Container::open(element);
    if (inner.has_value() && holds_batch(*inner)) return true;
  }
  return false;
}

// The container that a walk goes on in, if `value` is one: not where it goes whole.
std::optional<Container> open(py::handle value, const SpecPlace& place, const std::string& what) {
  if (place.is_whole() || place.is_custom() || cuts_itself(value)) return std::nullopt;
  std::optional<Container> container = Container::open(value);
  if (container.has_value()) place.check_fits(*container, what);
  const bool is_plain = !container.has_value() || container->is_plain() || place.has_parts();
  if (!is_plain && !holds_batch(*container)) return std::nullopt;
  return container;
}

// Checks every value that will be cut.
void check_all(py::handle value, const SpecPlace& place, std::int64_t rows,
               const std::string& what) {
  const RecursionGuard guard;
  if (place.is_custom()) return;
  if (THPVariable_CheckExact(value.ptr()) ||
      (THPVariable_Check(value.ptr()) && !cuts_itself(value))) {
    place.check_is_leaf(value, what);
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    const std::int64_t dim = cut_dim(tensor, place, what);
    if (dim != kNotCut) check_rows(tensor, dim, rows, what);
    return;
  }
  if (const auto container = open(value, place, what)) {
    for (std::size_t i = 0; i < container->size(); ++i)
      check_all(container->element(i), place.part(*container, i), rows,
                concat(what, container->place(i)));
    return;
  }
  if (place.is_whole()) return;
  place.check_is_leaf(value, what);
  refuse_hidden_tensors(value, what);
  if (!cuts_itself(value) && !is_plain(value.ptr()) && !Container::open(value).has_value())
    place.check_cuttable(value, what);
}

class Cutter {
 public:
  Cutter(PieceCache& cache, std::int64_t rows)
      : cache_(cache), num_microbatches_(cache.num_microbatches()), rows_(rows) {}

  Pieces cut(py::handle value, const SpecPlace& place, const std::string& what) const {
    const RecursionGuard guard;
    if (place.is_whole()) return repeat(value);
    if (place.is_custom()) {
      const BatchSpec& spec = place.leaf();
      return cache_.of(value, &spec,
                       [&] { return custom_pieces(value, spec.cut, num_microbatches_, what); });
    }
    if (cuts_itself(value))
      return cache_.of(value, nullptr,
                       [&] { return own_pieces(value, num_microbatches_, rows_, what); });
    if (THPVariable_Check(value.ptr()))
      return cut_tensor(THPVariable_Unpack(value.ptr()), value, place, what);
    if (const auto container = open(value, place, what)) return cut_inside(*container, place, what);
    return repeat(value);
  }

 private:
  Pieces repeat(py::handle value) const {
    return Pieces(as_index(num_microbatches_), py::reinterpret_borrow<py::object>(value));
  }

  Pieces cut_tensor(const at::Tensor& tensor, py::handle value, const SpecPlace& place,
                    const std::string& what) const {
    const std::int64_t dim = cut_dim(tensor, place, what);
    if (dim == kNotCut) return repeat(value);
    Pieces pieces;
    pieces.reserve(as_index(num_microbatches_));
    for (const at::Tensor& piece : cache_.of(tensor, dim))
      pieces.push_back(py::reinterpret_steal<py::object>(THPVariable_Wrap(piece)));
    return pieces;
  }

  Pieces cut_inside(const Container& container, const SpecPlace& place,
                    const std::string& what) const {
    std::vector<Pieces> of_elements;
    for (std::size_t i = 0; i < container.size(); ++i)
      of_elements.push_back(
          cut(container.element(i), place.part(container, i), concat(what, container.place(i))));
    Pieces pieces;
    for (std::size_t m = 0; m < as_index(num_microbatches_); ++m) {
      std::vector<py::object> elements;
      for (Pieces& of_element : of_elements) elements.push_back(std::move(of_element[m]));
      pieces.push_back(container.with(std::move(elements)));
    }
    return pieces;
  }

  PieceCache& cache_;
  int num_microbatches_;
  std::int64_t rows_;
};

// Of every tensor in a plain value, in the order of flatten(), the dimension in which it is cut.
// False if something can't be cut without Python objects.
bool collect_dims(py::handle value, const SpecPlace& place, const std::string& what,
                  std::vector<std::int64_t>& dims) {
  const RecursionGuard guard;
  if (place.is_custom()) return false;
  if (THPVariable_Check(value.ptr())) {
    dims.push_back(cut_dim(THPVariable_Unpack(value.ptr()), place, what));
    return true;
  }
  const auto container = Container::open(value);
  if (!container.has_value()) return true;
  for (std::size_t i = 0; i < container->size(); ++i) {
    if (!container->is_sequence() && THPVariable_Check(container->key(i).ptr()))
      dims.push_back(kNotCut);
    if (!collect_dims(container->element(i), place.part(*container, i), what, dims)) return false;
  }
  return true;
}

}  // namespace

std::optional<std::int64_t> batch_rows(py::handle value, const BatchSpec& spec,
                                       const std::string& what) {
  const auto walk = [](const auto& self, py::handle at, const SpecPlace& place,
                       const std::string& name) -> std::optional<std::int64_t> {
    const RecursionGuard guard;
    if (place.is_custom() || place.is_whole()) return std::nullopt;
    if (THPVariable_Check(at.ptr()) && !cuts_itself(at)) {
      const at::Tensor& tensor = THPVariable_Unpack(at.ptr());
      const std::int64_t dim = cut_dim(tensor, place, name);
      return dim == kNotCut ? std::nullopt : std::optional(tensor.size(dim));
    }
    const auto container = open(at, place, name);
    if (!container.has_value()) return std::nullopt;
    for (std::size_t i = 0; i < container->size(); ++i) {
      if (const auto rows = self(self, container->element(i), place.part(*container, i),
                                 concat(name, container->place(i))))
        return rows;
    }
    return std::nullopt;
  };
  return walk(walk, value, SpecPlace(spec), what);
}

std::vector<py::object> cut_batch(py::handle value, const BatchSpec& spec, PieceCache& cache,
                                  std::int64_t rows, const std::string& what) {
  check_cut(value, spec, cache.num_microbatches(), rows, what);
  return Cutter(cache, rows).cut(value, SpecPlace(spec), what);
}

void check_cut(py::handle value, const BatchSpec& spec, int num_microbatches, std::int64_t rows,
               const std::string& what) {
  check_batch_size(num_microbatches, rows, what);
  check_all(value, SpecPlace(spec), rows, what);
}

std::optional<std::vector<FlatValue>> cut_batch_flat(py::handle value, const BatchSpec& spec,
                                                     PieceCache& cache, std::int64_t rows,
                                                     const std::string& what) {
  if (!is_plain(value.ptr())) return std::nullopt;
  check_cut(value, spec, cache.num_microbatches(), rows, what);
  std::vector<std::int64_t> dims;
  if (!collect_dims(value, SpecPlace(spec), what, dims)) return std::nullopt;
  const FlatValue whole = flatten(value.ptr(), what);
  if (dims.size() != whole.tensors.size())
    throw InternalError(concat(dims.size(), " cuts for ", whole.tensors.size(), " tensors"));
  std::vector<FlatValue> pieces(as_index(cache.num_microbatches()));
  for (FlatValue& piece : pieces) piece.structure = whole.structure;
  for (std::size_t t = 0; t < dims.size(); ++t) {
    const at::Tensor& tensor = whole.tensors[t];
    for (std::size_t m = 0; m < pieces.size(); ++m)
      pieces[m].tensors.push_back(dims[t] == kNotCut ? tensor : cache.of(tensor, dims[t])[m]);
  }
  return pieces;
}

std::vector<double> batch_weights(int num_microbatches, std::int64_t rows) {
  std::vector<double> weights;
  const std::int64_t least = rows / num_microbatches;
  const std::int64_t longer = rows % num_microbatches;
  for (int i = 0; i < num_microbatches; ++i)
    weights.push_back(static_cast<double>(least + (i < longer ? 1 : 0)) /
                      static_cast<double>(rows));
  return weights;
}

}  // namespace pipert

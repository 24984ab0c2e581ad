#include "bindings/own_cut.h"

#include <torch/csrc/autograd/python_variable.h>

#include <string_view>

#include "base/error.h"
#include "base/index.h"

namespace py = pybind11;

namespace pipert {
namespace {

// Most values of a batch are of one of these, and need no look at their attributes.
bool is_of_known_type(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
         PyFloat_CheckExact(value) || PyUnicode_CheckExact(value) ||
         THPVariable_CheckExact(value) || PyTuple_CheckExact(value) || PyList_CheckExact(value) ||
         PyDict_CheckExact(value);
}

bool is_block_mask(py::handle value) {
  return std::string_view(Py_TYPE(value.ptr())->tp_name) == "BlockMask" &&
         py::cast<std::string>(py::type::of(value).attr("__module__")) ==
             "torch.nn.attention.flex_attention";
}

std::vector<py::object> pieces_of(const py::object& made, int num_microbatches,
                                  const std::string& who) {
  if (!PyList_Check(made.ptr()) && !PyTuple_Check(made.ptr())) {
    throw TypeError(concat(who, " must give a list of ", num_microbatches, " pieces, got ",
                           Py_TYPE(made.ptr())->tp_name));
  }
  std::vector<py::object> pieces;
  for (const py::handle piece : made) pieces.push_back(py::reinterpret_borrow<py::object>(piece));
  if (pieces.size() == as_index(num_microbatches)) return pieces;
  throw ValueError(concat(who, " must give ", num_microbatches, " pieces (num_microbatches), got ",
                          pieces.size()));
}

}  // namespace

bool cuts_itself(py::handle value) {
  if (is_of_known_type(value.ptr())) return false;
  return PyObject_HasAttrString(value.ptr(), "pipert_cut") != 0 || is_block_mask(value);
}

std::vector<py::object> own_pieces(py::handle value, int num_microbatches, std::int64_t rows,
                                   const std::string& what) {
  if (PyObject_HasAttrString(value.ptr(), "pipert_cut") != 0)
    return pieces_of(value.attr("pipert_cut")(num_microbatches), num_microbatches,
                     concat(what, ".pipert_cut"));
  const auto cut = py::module_::import("pipert.batches.block_mask").attr("cut_block_mask");
  return pieces_of(cut(value, num_microbatches, rows, what), num_microbatches, what);
}

std::vector<py::object> custom_pieces(py::handle value, const py::object& cut, int num_microbatches,
                                      const std::string& what) {
  return pieces_of(cut(value, num_microbatches), num_microbatches, concat("the cut of ", what));
}

}  // namespace pipert

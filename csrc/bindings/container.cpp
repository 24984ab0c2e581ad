#include "bindings/container.h"

#include <pybind11/gil_safe_call_once.h>

#include <utility>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {
namespace {

// What most values of a batch are; others are asked for more.
bool is_number_or_text(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
         PyFloat_CheckExact(value) || PyUnicode_CheckExact(value);
}

bool is_named_tuple(PyObject* value) {
  return PyTuple_Check(value) && PyObject_HasAttrString(value, "_fields") != 0;
}

bool is_user_dict(PyObject* value) {
  // Never freed: the interpreter may be gone by then. Guarded by the GIL alone: a thread that waits
  // for a lock of C++'s would have it.
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> type;
  type.call_once_and_store_result(
      [] { return py::object(py::module_::import("collections").attr("UserDict")); });
  return py::isinstance(value, type.get_stored());
}

bool is_dataclass(PyObject* value) {
  return !PyType_Check(value) && PyObject_HasAttrString(value, "__dataclass_fields__") != 0;
}

py::object copy_of(const py::object& value) {
  return py::module_::import("copy").attr("copy")(value);
}

}  // namespace

std::optional<Container> Container::open(py::handle value) {
  PyObject* object = value.ptr();
  if (is_number_or_text(object)) return std::nullopt;
  if (PyTuple_CheckExact(object)) return Container(Kind::kTuple, value);
  if (PyList_CheckExact(object)) return Container(Kind::kList, value);
  if (PyDict_CheckExact(object)) return Container(Kind::kDict, value);
  if (is_named_tuple(object)) return Container(Kind::kNamedTuple, value);
  if (PyDict_Check(object) || is_user_dict(object)) return Container(Kind::kMapping, value);
  if (is_dataclass(object)) return Container(Kind::kFields, value);
  return std::nullopt;
}

Container::Container(Kind kind, py::handle value)
    : kind_(kind), value_(py::reinterpret_borrow<py::object>(value)) {
  switch (kind_) {
    case Kind::kTuple:
    case Kind::kList:
    case Kind::kNamedTuple:
      take_sequence();
      break;
    case Kind::kDict:
    case Kind::kMapping:
      take_items();
      break;
    case Kind::kFields:
      take_fields();
      break;
  }
}

void Container::take_sequence() {
  for (const py::handle element : value_)
    elements_.push_back(py::reinterpret_borrow<py::object>(element));
  if (kind_ != Kind::kNamedTuple) return;
  for (const py::handle name : value_.attr("_fields"))
    keys_.push_back(py::reinterpret_borrow<py::object>(name));
}

void Container::take_items() {
  for (const py::handle item : value_.attr("items")()) {
    const auto pair = py::reinterpret_borrow<py::tuple>(item);
    keys_.push_back(pair[0]);
    elements_.push_back(pair[1]);
  }
}

void Container::take_fields() {
  for (const py::handle field : py::module_::import("dataclasses").attr("fields")(value_)) {
    py::object name = field.attr("name");
    if (!py::hasattr(value_, name)) continue;
    elements_.push_back(value_.attr(name));
    keys_.push_back(std::move(name));
  }
}

std::string Container::place(std::size_t index) const {
  switch (kind_) {
    case Kind::kTuple:
    case Kind::kList:
      return concat("[", index, "]");
    case Kind::kDict:
    case Kind::kMapping:
      return concat("[", py::cast<std::string>(py::repr(keys_[index])), "]");
    case Kind::kNamedTuple:
    case Kind::kFields:
      return concat(".", py::cast<std::string>(py::str(keys_[index])));
  }
  return {};
}

bool Container::is_plain() const {
  return kind_ == Kind::kTuple || kind_ == Kind::kList || kind_ == Kind::kDict;
}

py::object Container::with(std::vector<py::object> elements) const {
  if (is_sequence()) return sequence_of(std::move(elements));
  // Classes of the user's keep what else their objects have.
  py::object result = kind_ == Kind::kDict ? py::object(py::dict()) : copy_of(value_);
  const auto set_field = py::module_::import("builtins").attr("object").attr("__setattr__");
  for (std::size_t i = 0; i < elements.size(); ++i) {
    if (kind_ == Kind::kFields) {
      set_field(result, keys_[i], elements[i]);  // of frozen ones too
    } else {
      result[keys_[i]] = elements[i];
    }
  }
  return result;
}

py::object Container::sequence_of(std::vector<py::object> elements) const {
  const auto size = static_cast<Py_ssize_t>(elements.size());
  const bool is_tuple = kind_ != Kind::kList;
  auto result = py::reinterpret_steal<py::object>(is_tuple ? PyTuple_New(size) : PyList_New(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* element = elements[static_cast<std::size_t>(i)].release().ptr();
    if (is_tuple) {
      PyTuple_SET_ITEM(result.ptr(), i, element);
    } else {
      PyList_SET_ITEM(result.ptr(), i, element);
    }
  }
  if (kind_ == Kind::kNamedTuple) return py::type::of(value_).attr("_make")(result);
  return result;
}

}  // namespace pipert

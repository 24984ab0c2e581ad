#include "bindings/python_tree.h"

#include <torch/csrc/autograd/python_variable.h>

#include "base/error.h"
#include "base/index.h"
#include "bindings/container.h"
#include "bindings/recursion_guard.h"

namespace py = pybind11;

namespace pipert {
namespace {

Structure flatten_into(PyObject* value, const std::string& where, std::vector<at::Tensor>& tensors);

Structure flatten_sequence(PyObject* value, Structure::Kind kind, const std::string& where,
                           std::vector<at::Tensor>& tensors) {
  Structure structure{.kind = kind, .text = {}, .children = {}};
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(value);
  for (Py_ssize_t i = 0; i < size; ++i) {
    structure.children.push_back(
        flatten_into(PySequence_Fast_GET_ITEM(value, i), concat(where, "[", i, "]"), tensors));
  }
  return structure;
}

Structure flatten_dict(PyObject* value, const std::string& where,
                       std::vector<at::Tensor>& tensors) {
  Structure structure{.kind = Structure::Kind::kDict, .text = {}, .children = {}};
  PyObject* key = nullptr;
  PyObject* element = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(value, &position, &key, &element) != 0) {
    const std::string at = concat(where, "[", py::cast<std::string>(py::repr(key)), "]");
    structure.children.push_back(flatten_into(key, concat("the key of ", at), tensors));
    structure.children.push_back(flatten_into(element, at, tensors));
  }
  return structure;
}

Structure flatten_into(PyObject* value, const std::string& where,
                       std::vector<at::Tensor>& tensors) {
  const RecursionGuard guard;
  Structure leaf;
  if (THPVariable_Check(value)) {
    tensors.push_back(THPVariable_Unpack(value));
    return leaf;
  }
  if (PyTuple_CheckExact(value))
    return flatten_sequence(value, Structure::Kind::kTuple, where, tensors);
  if (PyList_CheckExact(value))
    return flatten_sequence(value, Structure::Kind::kList, where, tensors);
  if (PyDict_Check(value)) return flatten_dict(value, where, tensors);
  if (value == Py_None) {
    leaf.kind = Structure::Kind::kNone;
  } else if (PyBool_Check(value)) {
    leaf.kind = Structure::Kind::kBool;
    leaf.integer = value == Py_True ? 1 : 0;
  } else if (PyLong_CheckExact(value)) {
    leaf.kind = Structure::Kind::kInt;
    leaf.integer = PyLong_AsLongLong(value);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();  // OverflowError
  } else if (PyFloat_CheckExact(value)) {
    leaf.kind = Structure::Kind::kFloat;
    leaf.real = PyFloat_AS_DOUBLE(value);
  } else if (PyUnicode_CheckExact(value)) {
    leaf.kind = Structure::Kind::kString;
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &size);
    if (text == nullptr) throw py::error_already_set();  // UnicodeEncodeError
    leaf.text.assign(text, static_cast<std::size_t>(size));
  } else {
    throw TypeError(
        concat("stages exchange tensors, numbers, strings and None in tuples, lists and dicts; ",
               where, " is of type ", Py_TYPE(value)->tp_name));
  }
  return leaf;
}

py::object unflatten_from(const std::vector<at::Tensor>& tensors, std::size_t& next,
                          const Structure& structure) {
  switch (structure.kind) {
    case Structure::Kind::kTensor:
      return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensors[next++]));
    case Structure::Kind::kNone:
      return py::none();
    case Structure::Kind::kBool:
      return py::bool_(structure.integer != 0);
    case Structure::Kind::kInt:
      return py::int_(structure.integer);
    case Structure::Kind::kFloat:
      return py::float_(structure.real);
    case Structure::Kind::kString:
      return py::str(structure.text);
    case Structure::Kind::kTuple: {
      py::tuple result(structure.children.size());
      for (std::size_t i = 0; i < structure.children.size(); ++i) {
        result[i] = unflatten_from(tensors, next, structure.children[i]);
      }
      return result;
    }
    case Structure::Kind::kList: {
      py::list result;
      for (const Structure& child : structure.children)
        result.append(unflatten_from(tensors, next, child));
      return result;
    }
    case Structure::Kind::kDict: {
      py::dict result;
      for (std::size_t i = 0; i + 1 < structure.children.size(); i += 2) {
        const py::object key = unflatten_from(tensors, next, structure.children[i]);
        result[key] = unflatten_from(tensors, next, structure.children[i + 1]);
      }
      return result;
    }
  }
  throw InternalError("a structure of no known kind");
}

py::object borrowed(py::handle value) { return py::reinterpret_borrow<py::object>(value); }

// As with_each_tensor; null where `value` may stay the object that it is.
template <typename Change>
py::object changed(py::handle value, const Change& change) {
  const RecursionGuard guard;
  if (THPVariable_Check(value.ptr())) return change(value);
  const auto container = Container::open(value);
  if (!container.has_value()) return {};
  bool is_changed = container->is_plain();
  std::vector<py::object> elements;
  for (std::size_t i = 0; i < container->size(); ++i) {
    py::object element = changed(container->element(i), change);
    is_changed = is_changed || element;
    elements.push_back(element ? std::move(element) : container->element(i));
  }
  return is_changed ? container->with(std::move(elements)) : py::object();
}

// The same value in containers of its own, with what `change` makes of each tensor. An object of
// the user's classes that holds no tensor, and no list or dict either, is kept as it is.
template <typename Change>
py::object with_each_tensor(py::handle value, const Change& change) {
  py::object result = changed(value, change);
  return result ? result : borrowed(value);
}

template <typename Change>
py::object with_tensors(py::handle value, const Change& change) {
  return with_each_tensor(value, [&](py::handle tensor) {
    return py::reinterpret_steal<py::object>(
        THPVariable_Wrap(change(THPVariable_Unpack(tensor.ptr()))));
  });
}

}  // namespace

FlatValue flatten(PyObject* value, const std::string& what) {
  FlatValue flat;
  if (THPVariable_Check(value)) {
    flat.tensors.push_back(THPVariable_Unpack(value));
    return flat;
  }
  flat.structure = std::make_shared<const Structure>(flatten_into(value, what, flat.tensors));
  return flat;
}

bool is_plain(PyObject* value) {
  const RecursionGuard guard;
  if (THPVariable_Check(value) || value == Py_None || PyBool_Check(value) ||
      PyFloat_CheckExact(value))
    return true;
  if (PyLong_CheckExact(value)) {
    int overflow = 0;
    PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow == 0;
  }
  if (PyUnicode_CheckExact(value)) {
    const bool is_valid = PyUnicode_AsUTF8(value) != nullptr;
    PyErr_Clear();
    return is_valid;
  }
  if (PyTuple_CheckExact(value) || PyList_CheckExact(value)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); ++i) {
      if (!is_plain(PySequence_Fast_GET_ITEM(value, i))) return false;
    }
    return true;
  }
  if (!PyDict_CheckExact(value)) return false;
  PyObject* key = nullptr;
  PyObject* element = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(value, &position, &key, &element) != 0) {
    if (!is_plain(key) || !is_plain(element)) return false;
  }
  return true;
}

py::object unflatten(const std::vector<at::Tensor>& tensors, const Structure* structure) {
  if (structure == nullptr)
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensors.front()));
  std::size_t next = 0;
  return unflatten_from(tensors, next, *structure);
}

py::object detach_tensors(py::handle value) {
  return with_tensors(value, [](const at::Tensor& tensor) { return tensor.detach(); });
}

py::object copy_containers(py::handle value, bool clones) {
  if (clones) return with_tensors(value, [](const at::Tensor& tensor) { return tensor.clone(); });
  return with_each_tensor(value, [](py::handle tensor) { return borrowed(tensor); });
}

std::uint64_t sum_of_versions(py::handle value) {
  const RecursionGuard guard;
  if (THPVariable_Check(value.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
    return tensor.is_inference() ? 0 : tensor._version();
  }
  std::uint64_t sum = 0;
  if (PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) {
    for (const py::handle element : value) sum += sum_of_versions(element);
  } else if (const auto container = Container::open(value)) {
    for (std::size_t i = 0; i < container->size(); ++i)
      sum += sum_of_versions(container->element(i));
  }
  return sum;
}

}  // namespace pipert

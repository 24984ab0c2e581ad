#include "bindings/python_failure.h"

#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include "base/error.h"

namespace py = pybind11;

namespace pipert {
namespace {

const char* kind_name(FailureKind kind) {
  switch (kind) {
    case FailureKind::kAction:
      return "action";
    case FailureKind::kTransfer:
      return "transfer";
    case FailureKind::kTimeout:
      return "timeout";
    case FailureKind::kRemote:
      return "remote";
    case FailureKind::kInterrupted:
      return "interrupted";
  }
  return "";
}

py::object translated(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (py::error_already_set& error) {
    py::object value = error.value();
    if (error.trace()) PyException_SetTraceback(value.ptr(), error.trace().ptr());
    return value;
  } catch (python_error& error) {
    error.restore();
  } catch (const ValueError& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const TypeError& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const IndexError& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
  }
  py::error_already_set error;  // fetches what was set
  py::object value = error.value();
  if (error.trace()) PyException_SetTraceback(value.ptr(), error.trace().ptr());
  return value;
}

// Null: it is about no other one.
std::exception_ptr nested_in(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (const std::nested_exception& error) {
    return error.nested_ptr();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

py::object python_exception(const std::exception_ptr& cause) {
  if (cause == nullptr) return py::none();
  py::object value = translated(cause);
  if (const std::exception_ptr nested = nested_in(cause))
    PyException_SetCause(value.ptr(), python_exception(nested).release().ptr());
  return value;
}

void raise_pipeline_error(const Failure& failure, const py::object& advise) {
  const py::object cause = python_exception(failure.cause);
  py::object advice = py::str();
  if (failure.kind == FailureKind::kAction && advise && !advise.is_none()) {
    const HeldMemory& held = failure.held;
    try {
      advice = advise(cause, failure.rank, held.training, held.activations,
                      held.bytes < 0 ? py::object(py::none()) : py::cast(held.bytes));
    } catch (const py::error_already_set&) {  // no memory for it either: the failure comes first
    }
  }
  const py::object action = failure.action.has_value() ? py::cast(*failure.action) : py::none();
  const py::object error = py::module_::import("pipert.errors")
                               .attr("make_pipeline_error")(kind_name(failure.kind), failure.rank,
                                                            action, failure.message, cause, advice);
  if (!cause.is_none()) PyException_SetCause(error.ptr(), cause.inc_ref().ptr());
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

std::string failure_text(const py::error_already_set& error) {
  return py::cast<std::string>(
      py::module_::import("pipert.errors").attr("describe_for_peers")(error.value()));
}

}  // namespace pipert

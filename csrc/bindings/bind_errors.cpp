// The torch-free floors' exceptions, as the Python builtins of the same names.

#include <exception>

#include "base/error.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace pipert {

void bind_errors(py::module_& /*module*/) {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const ValueError& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const IndexError& e) {
      py::set_error(PyExc_IndexError, e.what());
    } catch (const TypeError& e) {
      py::set_error(PyExc_TypeError, e.what());
    } catch (const InternalError& e) {
      py::set_error(PyExc_RuntimeError, e.what());
    }
  });
}

}  // namespace pipert

// From a Failure to the Python exception that the caller sees. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <string>

#include "runtime/failure.h"

namespace pipert {

// The Python exception object for a C++ exception; None for a null pointer.
pybind11::object python_exception(const std::exception_ptr& cause);

// Raises pipert.PipelineError for `failure`, with the user's exception as its cause.
// `advise`: pipert.local.out_of_memory's, for a failure of which it knows more; or None.
[[noreturn]] void raise_pipeline_error(const Failure& failure, const pybind11::object& advise);

// What other processes are told of it; pipert.errors reads it back.
std::string failure_text(const pybind11::error_already_set& error);

}  // namespace pipert

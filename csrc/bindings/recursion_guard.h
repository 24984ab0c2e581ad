// RecursionGuard: turns a value that contains itself, or is nested too deep for the stack, into
// Python's RecursionError. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace pipert {

class RecursionGuard {
 public:
  RecursionGuard() {
    if (Py_EnterRecursiveCall(" while walking through nested values") != 0) {
      throw pybind11::error_already_set();
    }
  }
  ~RecursionGuard() { Py_LeaveRecursiveCall(); }
  RecursionGuard(const RecursionGuard&) = delete;
  RecursionGuard& operator=(const RecursionGuard&) = delete;
};

}  // namespace pipert

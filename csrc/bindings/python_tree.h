// Between Python values and what stages exchange: tensors beside a Structure. All of it REQUIRES
// the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/structure.h"

namespace pipert {

struct FlatValue {
  std::vector<at::Tensor> tensors;             // depth first
  std::shared_ptr<const Structure> structure;  // null when the value is one tensor
};

// `what` names the value in errors ("stage 1's output"). TypeError for anything that isn't a
// tensor, a number, a string or None in tuples, lists and dicts.
FlatValue flatten(PyObject* value, const std::string& what);

// Whether flatten and unflatten give the same value again, types included: nothing but tensors,
// numbers, strings and None in tuples, lists and dicts.
bool is_plain(PyObject* value);

// The Python value again.
pybind11::object unflatten(const std::vector<at::Tensor>& tensors, const Structure* structure);

// The same value with every tensor detached, in containers (see Container) of its own. What is none
// is kept as it is, and so is an object of the user's classes with no tensor, list or dict in it.
pybind11::object detach_tensors(pybind11::handle value);

// The same value in containers of its own, likewise; with `clones`, with tensors of its own too,
// which are in the same graphs.
pybind11::object copy_containers(pybind11::handle value, bool clones);

// A number that changes when a tensor in `value` is worked on in place.
std::uint64_t sum_of_versions(pybind11::handle value);

}  // namespace pipert

// PassConditions: what a recorded pass was made under, and may be replayed under: which weights and
// buffers there are, where they and their gradients lie, the modes of the modules, and those of
// torch on the calling thread.
//
// Used with the GIL held, between passes.
#pragma once

#include <c10/core/Device.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "autograd/leaves.h"

namespace pipert {

class PassConditions {
 public:
  // `dicts`: the modules' `_parameters` and `_buffers`. `attributes`: the modules' `__dict__`s.
  // `others`: tensors that a pass reads or writes beside those of the dicts.
  PassConditions(std::vector<pybind11::dict> dicts, std::vector<pybind11::dict> attributes,
                 const std::vector<at::Tensor>& others, const c10::Device& device);

  // Differs where any of the conditions does. Nothing once another object stands in a dict than
  // stood there at first: then conditions must be made anew.
  std::optional<std::uint64_t> state() const;

  Leaves& leaves() { return leaves_; }
  const c10::Device& device() const { return device_; }

 private:
  std::uint64_t objects() const;

  std::vector<pybind11::dict> dicts_;
  std::vector<pybind11::dict> attributes_;
  c10::Device device_;
  Leaves leaves_;
  std::uint64_t first_objects_;
};

}  // namespace pipert

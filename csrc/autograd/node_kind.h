// NodeKind: whether an autograd node can be run twice, once for each half of its backward.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <string>
#include <string_view>

namespace pipert {

enum class NodeKind : std::uint8_t {
  kSplittable,  // torch's own: a pure function of its gradients and of what it saved, which
                // computes what its edges ask for
  kAllAtOnce,  // torch's own, whose kernel computes all gradients together: two runs cost double
  kPython,     // a Python autograd.Function, a compiled module, a reentrant checkpoint
  kCustom,     // a C++ autograd::Function
  kInPlace,    // an in-place change of a view; checks that its edges are what they were
  kOther,      // anything else: nothing is known of it
};

// By type: a lookup in a table of the thread.
NodeKind kind_of(const torch::autograd::Node& node);

// Why a node of this kind is not run twice, in words; empty for kSplittable.
std::string_view reason_against_split(NodeKind kind);

// "AddmmBackward0", as Python shows it.
std::string name_of(const torch::autograd::Node& node);

}  // namespace pipert

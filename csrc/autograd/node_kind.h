// NodeKind: whether an autograd node is run twice, once for each half of its backward.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <string>
#include <string_view>

namespace pipert {

enum class NodeKind : std::uint8_t {
  kProduct,    // torch's own, whose weight gradient is a matrix product or a convolution: worth
               // putting off. A pure function of its gradients and of what it saved, which computes
               // what its edges ask for
  kReduction,  // any other of torch's own: as a rule its weight gradient is a sum (norms, biases,
               // scales), cheaper to make at once, and smaller to keep, than what it is made of
  kAllAtOnce,  // torch's own, whose kernel computes all gradients together: two runs cost double
  kPython,     // a Python autograd.Function, a compiled module, a reentrant checkpoint
  kCustom,     // a C++ autograd::Function
  kInPlace,    // an in-place change of a view; checks that its edges are what they were
  kOther,      // anything else: nothing is known of it
};

// By type: a lookup in a table of the thread.
NodeKind kind_of(const torch::autograd::Node& node);

// Why a node of this kind can't be run twice, in words; empty for kProduct and kReduction.
std::string_view reason_against_split(NodeKind kind);

// "AddmmBackward0", as Python shows it.
std::string name_of(const torch::autograd::Node& node);

}  // namespace pipert

// NodePtr: how this torch holds autograd nodes, and how to make one of ours.
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace pipert {

// torch 2.11 holds nodes by shared_ptr, 2.13 by intrusive_ptr.
using NodePtr = decltype(torch::autograd::Edge::function);

template <typename NodeType>
struct NewNode {
  NodePtr owner;
  NodeType* node = nullptr;  // the same
};

// A template over `Pointer` so that only the branch that fits this torch is compiled.
template <typename NodeType, typename Pointer = NodePtr, typename... Arguments>
NewNode<NodeType> make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    auto* node = new NodeType(std::forward<Arguments>(arguments)...);
    return {Pointer(node, [](auto* dying) { deleteNode(dying); }), node};
  } else {
    auto made = c10::make_intrusive<NodeType>(std::forward<Arguments>(arguments)...);
    auto* node = made.get();
    return {Pointer(std::move(made)), node};
  }
}

}  // namespace pipert

#include "autograd/node_kind.h"

#include <c10/util/flat_hash_map.h>

#include <algorithm>
#include <array>
#include <span>
#include <typeinfo>

namespace pipert {
namespace {

// Attention, recurrent layers and one convolution, whose one kernel makes every gradient.
constexpr std::array<std::string_view, 6> kAllAtOnceNames = {
    "ScaledDotProduct", "FlashAttention", "EfficientAttention", "Rnn", "ThnnFused", "ConvTbc"};

// Mm, Bmm, Addmm, Baddbmm, ScaledMm, Mv, Addmv, ...
constexpr std::array<std::string_view, 7> kProductNames = {
    "MmBackward", "mmBackward",     "MvBackward",    "mvBackward",
    "Conv",       "LinearBackward", "linearBackward"};

bool has_any(std::string_view name, std::span<const std::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return name.find(part) != name.npos; });
}

// By the mangled name: the Python and custom classes are templates or live in torch_python, which
// this floor doesn't know.
NodeKind classify(std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  if (has("PyNode")) return NodeKind::kPython;
  if (has("CppNode")) return NodeKind::kCustom;
  if (has("CopySlices")) return NodeKind::kInPlace;
  if (!has("5torch8autograd9generated")) return NodeKind::kOther;
  if (has_any(name, kAllAtOnceNames)) return NodeKind::kAllAtOnce;
  return has_any(name, kProductNames) ? NodeKind::kProduct : NodeKind::kReduction;
}

}  // namespace

NodeKind kind_of(const torch::autograd::Node& node) {
  // By address: std::type_index would hash the name. A type with several is classified as often.
  thread_local ska::flat_hash_map<const std::type_info*, NodeKind> kinds;
  const std::type_info& type = typeid(node);
  const auto [entry, is_new] = kinds.emplace(&type, NodeKind::kOther);
  if (is_new) entry->second = classify(type.name());
  return entry->second;
}

std::string_view reason_against_split(NodeKind kind) {
  switch (kind) {
    case NodeKind::kProduct:
    case NodeKind::kReduction:
      return "";
    case NodeKind::kAllAtOnce:
      return "its kernel computes all gradients at once";
    case NodeKind::kPython:
      return "it is implemented in Python, where it can't be told to compute one half alone";
    case NodeKind::kCustom:
      return "it is a custom C++ function, which may compute both halves each time";
    case NodeKind::kInPlace:
      return "it changes a view in place";
    case NodeKind::kOther:
      return "it is not one of torch's generated functions";
  }
  return "";
}

std::string name_of(const torch::autograd::Node& node) { return node.name(); }

}  // namespace pipert

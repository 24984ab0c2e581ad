#include "bindings/batch_spec.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "bindings/recursion_guard.h"

namespace py = pybind11;

namespace pipert {
namespace {

using Kind = BatchSpec::Kind;

const BatchSpec& default_spec() {
  static const BatchSpec spec;
  return spec;
}

Kind kind_of(const std::string& word) {
  if (word == "default") return Kind::kDefault;
  if (word == "cut") return Kind::kCut;
  if (word == "whole") return Kind::kWhole;
  if (word == "custom") return Kind::kCustom;
  if (word == "sequence") return Kind::kSequence;
  if (word == "named") return Kind::kNamed;
  throw InternalError(concat("no kind of spec: ", word));
}

BatchSpec parse(const py::handle& tree) {
  const RecursionGuard guard;
  const auto node = py::cast<py::tuple>(tree);
  BatchSpec spec;
  spec.kind = kind_of(py::cast<std::string>(node[0]));
  spec.name = py::cast<std::string>(node[1]);
  spec.dim = py::cast<std::int64_t>(node[2]);
  const py::object rest = node[3];
  if (spec.kind == Kind::kCustom) spec.cut = rest;
  if (spec.kind == Kind::kSequence) {
    for (const py::handle part : rest) spec.parts.push_back(parse(part));
  }
  if (spec.kind == Kind::kNamed) {
    for (const auto& [key, part] : py::reinterpret_borrow<py::dict>(rest)) {
      spec.keys.push_back(py::reinterpret_borrow<py::object>(key));
      spec.parts.push_back(parse(part));
    }
  }
  return spec;
}

std::optional<std::size_t> find_key(const std::vector<py::object>& keys, const py::object& key) {
  const auto found = std::find_if(keys.begin(), keys.end(),
                                  [&](const py::object& other) { return other.equal(key); });
  if (found == keys.end()) return std::nullopt;
  return static_cast<std::size_t>(found - keys.begin());
}

std::string listed_keys(const Container& container) {
  std::string text;
  for (std::size_t i = 0; i < container.size(); ++i)
    text += concat(i == 0 ? "" : ", ", py::cast<std::string>(py::repr(container.key(i))));
  return text.empty() ? "nothing" : text;
}

void check_names(const BatchSpec& node, const Container& container, const std::string& what) {
  if (node.may_lack) return;
  std::vector<py::object> keys;
  for (std::size_t i = 0; i < container.size(); ++i) keys.push_back(container.key(i));
  for (const py::object& key : node.keys) {
    if (find_key(keys, key).has_value()) continue;
    throw ValueError(concat(node.name, " has a spec for ", py::cast<std::string>(py::repr(key)),
                            ", ", what, " has ", listed_keys(container)));
  }
}

}  // namespace

BatchSpecs batch_specs(const py::tuple& trees) {
  BatchSpecs specs{.args = parse(trees[0]), .kwargs = parse(trees[1]), .target = parse(trees[2])};
  specs.args.may_lack = true;
  specs.kwargs.may_lack = true;
  return specs;
}

bool SpecPlace::has_parts() const {
  return node_ != nullptr && (node_->kind == Kind::kSequence || node_->kind == Kind::kNamed);
}

std::int64_t SpecPlace::dim(const at::Tensor& tensor, const std::string& what) const {
  const std::int64_t dim = leaf_->dim < 0 ? leaf_->dim + tensor.dim() : leaf_->dim;
  if (dim >= 0 && dim < tensor.dim()) return dim;
  throw ValueError(concat(leaf_->name, " cuts dimension ", leaf_->dim, ", ", what, " has ",
                          tensor.dim(), " dimension", tensor.dim() == 1 ? "" : "s"));
}

void SpecPlace::check_fits(const Container& container, const std::string& what) const {
  if (!has_parts()) return;
  if (node_->kind == Kind::kSequence) {
    const std::size_t expected = node_->parts.size();
    const bool fits = node_->may_lack ? container.size() <= expected : container.size() == expected;
    if (container.is_sequence() && fits) return;
    throw ValueError(concat(
        node_->name, " has specs for ", node_->may_lack ? "at most " : "", expected, " elements, ",
        what, container.is_sequence() ? concat(" has ", container.size()) : " has them by name"));
  }
  if (!container.has_keys()) {
    throw ValueError(
        concat(node_->name, " has specs by name, ", what, " has elements without names"));
  }
  check_names(*node_, container, what);
}

void SpecPlace::check_is_leaf(py::handle value, const std::string& what) const {
  if (!has_parts() || value.is_none()) return;  // None: an argument that isn't given
  const bool is_sequence = node_->kind == Kind::kSequence;
  throw ValueError(concat(node_->name, " has specs for ",
                          is_sequence ? concat(node_->parts.size(), " elements") : "named elements",
                          ", ", what, " is a ", Py_TYPE(value.ptr())->tp_name));
}

void SpecPlace::check_cuttable(py::handle value, const std::string& what) const {
  if (node_ == nullptr || node_->kind != Kind::kCut) return;
  throw ValueError(concat(node_->name, " asks to cut ", what, ", which is a ",
                          Py_TYPE(value.ptr())->tp_name,
                          ": expected a tensor, a container of tensors, or an object with a method "
                          "pipert_cut (CustomCut cuts others)"));
}

SpecPlace SpecPlace::part(const Container& container, std::size_t index) const {
  if (!has_parts()) return {nullptr, leaf_};
  std::optional<std::size_t> at = index;
  if (node_->kind == Kind::kNamed) at = find_key(node_->keys, container.key(index));
  return SpecPlace(at.has_value() ? node_->parts[*at] : default_spec());
}

}  // namespace pipert

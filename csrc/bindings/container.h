// Container: a tuple, list, dict or object with fields, opened: its elements, and the way to make
// another one like it. REQUIRES the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pipert {

class Container {
 public:
  // Tuples, lists and dicts; namedtuples, UserDicts, subclasses of dict and dataclasses. Nothing if
  // `value` is none of them.
  static std::optional<Container> open(pybind11::handle value);

  std::size_t size() const { return elements_.size(); }
  const pybind11::object& element(std::size_t index) const { return elements_[index]; }
  // Whether elements are known by position. Those of a namedtuple are, and by name.
  bool is_sequence() const { return kind_ <= Kind::kNamedTuple; }
  // Whether elements are known by key, or by the name of a field.
  bool has_keys() const { return !keys_.empty() || !is_sequence(); }
  const pybind11::object& key(std::size_t index) const { return keys_[index]; }
  // What stands behind the container's name where an element is meant: "[0]", "['mask']", ".mask".
  std::string place(std::size_t index) const;
  // Whether it is a plain tuple, list or dict: one that holds no tensors is still made anew for
  // each microbatch, others are not.
  bool is_plain() const;

  // One with these elements, as many as this has.
  pybind11::object with(std::vector<pybind11::object> elements) const;

 private:
  // In this order: see is_sequence().
  enum class Kind : std::uint8_t { kTuple, kList, kNamedTuple, kDict, kMapping, kFields };

  Container(Kind kind, pybind11::handle value);
  void take_sequence();
  void take_items();
  void take_fields();
  pybind11::object sequence_of(std::vector<pybind11::object> elements) const;

  Kind kind_;
  pybind11::object value_;
  std::vector<pybind11::object> keys_;  // empty for tuples and lists
  std::vector<pybind11::object> elements_;
};

}  // namespace pipert

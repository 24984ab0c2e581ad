// WholeNumber: an int argument that refuses True and False, which Python takes for 1 and 0: as the
// index of a stage, or as a count, they are a mistake.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace pipert {

struct WholeNumber {
  int value = 0;
};

inline std::vector<int> to_ints(const std::vector<WholeNumber>& numbers) {
  std::vector<int> ints;
  ints.reserve(numbers.size());
  for (const WholeNumber& number : numbers) ints.push_back(number.value);
  return ints;
}

}  // namespace pipert

template <>
struct pybind11::detail::type_caster<pipert::WholeNumber> {
  PYBIND11_TYPE_CASTER(pipert::WholeNumber, const_name("int"));

  bool load(handle source, bool convert) {
    if (PyBool_Check(source.ptr()) != 0) return false;
    type_caster<int> number;
    if (!number.load(source, convert)) return false;
    value.value = cast_op<int>(number);
    return true;
  }
  static handle cast(const pipert::WholeNumber& number, return_value_policy /*policy*/,
                     handle /*parent*/) {
    return PyLong_FromLong(number.value);
  }
};

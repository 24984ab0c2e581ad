// OneOrMany: an argument that is one number, or one for each stage or rank.
#pragma once

#include <pybind11/stl.h>

#include <optional>
#include <variant>
#include <vector>

namespace pipert {

using OneOrMany = std::variant<double, std::vector<double>>;

inline std::vector<double> to_vector(const OneOrMany& values) {
  if (const auto* one = std::get_if<double>(&values)) return {*one};
  return std::get<std::vector<double>>(values);
}

// Empty for None.
inline std::vector<double> to_vector(const std::optional<OneOrMany>& values) {
  return values ? to_vector(*values) : std::vector<double>();
}

}  // namespace pipert

#include "base/one_or_each.h"

#include <cmath>

#include "base/error.h"
#include "base/index.h"

namespace pipert {

double one_of(const std::vector<double>& values, int index) {
  return values.size() == 1 ? values.front() : values[as_index(index)];
}

std::vector<double> spread(const std::vector<double>& values, int size) {
  return values.size() == 1 ? std::vector<double>(as_index(size), values.front()) : values;
}

void require_number(std::string_view name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError(concat(name, " must be finite and at least 0, got ", value));
}

void require_one_or_each(std::string_view name, const std::vector<double>& values, int size,
                         std::string_view what) {
  for (const double value : values) require_number(name, value);
  if (values.size() == 1 || values.size() == as_index(size)) return;
  throw ValueError(
      concat(name, " must be one number or ", size, " (", what, "), got ", values.size()));
}

}  // namespace pipert

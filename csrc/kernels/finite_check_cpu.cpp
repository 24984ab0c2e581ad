#include <cmath>

#include "kernels/finite_check.h"
#include "kernels/number_type.h"

namespace pipert::kernels {
namespace {

template <typename Number>
double sum_of_squares(const Number* values, std::int64_t numel) {
  double sum = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    const double value = to_float(values[i]);
    sum += value * value;
  }
  return sum;
}

}  // namespace

void check_finite(std::span<const Piece> pieces, const FiniteResult& result) {
  check_are_numbers(pieces, "check_finite");
  double sum = 0;
  for (const Piece& piece : pieces) {
    with_number(piece.element, [&](auto number) {
      sum += sum_of_squares(static_cast<const decltype(number)*>(piece.data), piece.numel);
    });
  }
  *result.flag = std::isfinite(sum) ? 0 : 1;
  *result.norm = static_cast<float>(std::sqrt(sum));
}

}  // namespace pipert::kernels

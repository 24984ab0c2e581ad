#include "base/error.h"
#include "kernels/accumulate.h"
#include "kernels/number_type.h"

namespace pipert::kernels {
namespace {

template <typename Number>
void add(const Number* gradient, float* main, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) main[i] += to_float(gradient[i]);
}

}  // namespace

void check_accumulate(std::span<const Piece> gradients, std::span<const Piece> mains) {
  if (gradients.size() != mains.size())
    throw ValueError(concat("accumulate: expected a main gradient for each gradient, got ",
                            gradients.size(), " gradients and ", mains.size(), " mains"));
  check_are_numbers(gradients, "accumulate");
  for (std::size_t i = 0; i < mains.size(); ++i) {
    if (mains[i].element != Element::kFloat32)
      throw ValueError(concat("accumulate: main gradient ", i, " must be float32"));
    if (mains[i].numel != gradients[i].numel)
      throw ValueError(concat("accumulate: main gradient ", i, " has ", mains[i].numel,
                              " elements, its gradient ", gradients[i].numel));
  }
}

void accumulate(std::span<const Piece> gradients, std::span<const Piece> mains) {
  check_accumulate(gradients, mains);
  for (std::size_t i = 0; i < mains.size(); ++i) {
    with_number(gradients[i].element, [&](auto number) {
      using Number = decltype(number);
      add(static_cast<const Number*>(gradients[i].data), static_cast<float*>(mains[i].data),
          mains[i].numel);
    });
  }
}

}  // namespace pipert::kernels

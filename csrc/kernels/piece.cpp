#include "kernels/piece.h"

#include "base/error.h"

namespace pipert::kernels {

void check_are_numbers(std::span<const Piece> pieces, const char* what) {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].element == Element::kByte)
      throw ValueError(
          concat(what, ": expected float32, bfloat16 or float16, piece ", i, " holds bytes"));
  }
}

}  // namespace pipert::kernels

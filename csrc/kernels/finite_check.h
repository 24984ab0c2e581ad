// One pass over many gradients: are all values finite, and what is their 2-norm.
//
// The squares are added up in double, where no sum of float32 squares overflows: so the sum is
// finite if and only if all values are, and the flag costs nothing. (A GPU adds up a few in float
// first, where that loses no more than rounding: its norm is right to 5e-7 of its size.) With a
// value that isn't finite the norm is an infinity or NaN. The order of the sum depends on sizes,
// alignment and device alone: the same gradients give the same bits each time. ValueError for
// pieces of bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/piece.h"
#include "kernels/stream.h"

namespace pipert::kernels {

// Of a GPU's blocks, which leave their partial sums in memory that the caller brings: it belongs to
// one check until that has run.
inline constexpr std::size_t kMaxPartialSums = 4096;

struct FiniteResult {
  std::int32_t* flag;    // 1 if any value is not finite, else 0
  float* norm;           // of all values together; 0 if there are none
  double* partial_sums;  // kMaxPartialSums of them, overwritten; not used on the CPU
};

void check_finite(std::span<const Piece> pieces, const FiniteResult& result);
void check_finite(std::span<const Piece> pieces, const FiniteResult& result, DeviceStream stream);

}  // namespace pipert::kernels

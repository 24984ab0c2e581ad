// Adds many gradients to their float32 main gradients: main[i] += float(gradient[i]), one rounding
// each, bit for bit what torch's main.add_(gradient) gives.
//
// `mains` are as many as `gradients`, float32, of the same sizes; two of them may not overlap.
// ValueError else. On a stream: as pack (pack.h).
#pragma once

#include <span>

#include "kernels/piece.h"
#include "kernels/stream.h"

namespace pipert::kernels {

void accumulate(std::span<const Piece> gradients, std::span<const Piece> mains);
void accumulate(std::span<const Piece> gradients, std::span<const Piece> mains,
                DeviceStream stream);

// What both refuse.
void check_accumulate(std::span<const Piece> gradients, std::span<const Piece> mains);

}  // namespace pipert::kernels

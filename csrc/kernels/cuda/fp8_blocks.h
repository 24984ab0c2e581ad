// fp8 blocks on a GPU (slot_layout.h, Note [Blocks of fp8]).
#pragma once

#include <vector>

#include "kernels/cuda/spans.h"
#include "kernels/piece.h"

namespace pipert::kernels {

// From numbers to a piece's place in the slot.
void pack_blocks(Element element, const std::vector<Span>& spans, cudaStream_t stream);
// From there to numbers.
void unpack_blocks(Element element, const std::vector<Span>& spans, cudaStream_t stream);

}  // namespace pipert::kernels

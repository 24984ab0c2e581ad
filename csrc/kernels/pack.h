// Many tensors into one slot and back, in one or few passes over memory, with a cast on the way if
// the format asks for one (slot_layout.h). Pieces of bytes travel as they are, in kAsIs alone.
//
// float32 beyond float16's range becomes an infinity in kFloat16, as in torch; kFp8Block tells NaN
// of infinities no more. All other casts lose nothing but bits that don't fit, rounded to nearest
// even.
//
// The slot has room for SlotLayout(pieces, format).num_bytes(), which is returned. It and the
// pieces may lie anywhere; 16-byte aligned ones are fastest. They must not overlap. ValueError as
// SlotLayout. Both versions write the same bytes.
//
// On a stream nothing is copied from the host (the pieces travel in the kernels' arguments), so it
// can be captured into a graph, and `pieces` is not needed after the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/piece.h"
#include "kernels/slot_layout.h"
#include "kernels/stream.h"

namespace pipert::kernels {

std::int64_t pack(std::span<const Piece> pieces, Format format, std::byte* slot);
std::int64_t pack(std::span<const Piece> pieces, Format format, std::byte* slot,
                  DeviceStream stream);

// Writes the pieces.
std::int64_t unpack(std::span<const Piece> pieces, Format format, const std::byte* slot);
std::int64_t unpack(std::span<const Piece> pieces, Format format, const std::byte* slot,
                    DeviceStream stream);

}  // namespace pipert::kernels

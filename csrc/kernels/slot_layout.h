// SlotLayout: where each piece lies in a slot, and in which Format. Both ends of an edge compute
// the same one from the pieces' sizes, so a slot needs no header.
//
// Every piece begins at a multiple of 16 bytes from the slot's beginning, in the order given. What
// is between pieces isn't written.
//
// Note [Blocks of fp8]
// A piece in kFp8Block is one e4m3 code for each element, then, from the next multiple of 16 bytes
// on, one scale byte s for each 32 of them: an element is code * 2^(s - 127), as in the
// OCP MX formats. A power of two scales without rounding, costs one byte where a float costs
// four, and 32 elements are the few neighbours that one outlier spoils: 3 % more bytes than the
// codes alone, where 128 elements with a float have 3 % too and coarser blocks. The scale is the
// smallest that brings the block's largest finite magnitude to at most 448, e4m3's largest
// number (MX takes one binade less and saturates up to 12 % of it away), from 2^-126 to 2^119: what
// is beyond 448 * 2^119, the top of float32's last binade, saturates there.
// - Elements round to nearest, ties to even, with a relative error of at most 1/16 down to 2^-13 of
//   the block's largest; what is smaller loses bits, as e4m3's subnormals do.
// - NaN and both infinities become the code of NaN, 0x7f, and come back as NaN: a check of the
//   gradients on the other side still sees an overflow. The block's other elements aren't touched.
// - Finite elements stay finite (in a narrower dtype than they came from they may not), and zeros
// keep their sign.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/piece.h"

namespace pipert::kernels {

enum class Format : std::uint8_t { kAsIs, kFloat32, kBFloat16, kFloat16, kFp8Block };

inline constexpr std::int64_t kSlotAlignment = 16;  // bytes
inline constexpr std::int64_t kFp8BlockSize = 32;   // elements that share a scale

// "as_is", "float32", "bfloat16", "float16" or "fp8_block"; ValueError else.
Format format_of(std::string_view name);

constexpr std::int64_t align_in_slot(std::int64_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

class SlotLayout {
 public:
  // ValueError if pieces of bytes shall be cast.
  SlotLayout(std::span<const Piece> pieces, Format format);

  std::int64_t offset(std::size_t piece) const { return offsets_[piece]; }
  // Of the whole slot, a multiple of kSlotAlignment.
  std::int64_t num_bytes() const { return offsets_.back(); }

 private:
  std::vector<std::int64_t> offsets_;  // and where the last piece's successor would begin
};

// The type that a piece's elements have in a slot of any format but kFp8Block.
Element element_in_slot(const Piece& piece, Format format);

}  // namespace pipert::kernels

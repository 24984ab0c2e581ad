#include "kernels/slot_layout.h"

#include "base/error.h"

namespace pipert::kernels {
namespace {

std::int64_t bytes_in_slot(const Piece& piece, Format format) {
  if (format != Format::kFp8Block) return piece.numel * bytes_of(element_in_slot(piece, format));
  const std::int64_t num_scales = (piece.numel + kFp8BlockSize - 1) / kFp8BlockSize;
  return align_in_slot(piece.numel) + num_scales;
}

}  // namespace

Format format_of(std::string_view name) {
  if (name == "as_is") return Format::kAsIs;
  if (name == "float32") return Format::kFloat32;
  if (name == "bfloat16") return Format::kBFloat16;
  if (name == "float16") return Format::kFloat16;
  if (name == "fp8_block") return Format::kFp8Block;
  throw ValueError(concat(
      "format: expected \"as_is\", \"float32\", \"bfloat16\", \"float16\" or \"fp8_block\", got \"",
      name, "\""));
}

Element element_in_slot(const Piece& piece, Format format) {
  switch (format) {
    case Format::kAsIs:
      return piece.element;
    case Format::kFloat32:
      return Element::kFloat32;
    case Format::kBFloat16:
      return Element::kBFloat16;
    case Format::kFloat16:
      return Element::kFloat16;
    case Format::kFp8Block:
      break;
  }
  throw InternalError("fp8 blocks have no element type");
}

SlotLayout::SlotLayout(std::span<const Piece> pieces, Format format) {
  if (format != Format::kAsIs) check_are_numbers(pieces, "a slot with a cast");
  offsets_.reserve(pieces.size() + 1);
  offsets_.push_back(0);
  for (const Piece& piece : pieces)
    offsets_.push_back(offsets_.back() + align_in_slot(bytes_in_slot(piece, format)));
}

}  // namespace pipert::kernels

#include "kernels/pack.h"

#include <array>

#include "kernels/cuda/copy.h"
#include "kernels/cuda/fp8_blocks.h"
#include "kernels/cuda/map.h"
#include "kernels/number_type.h"

namespace pipert::kernels {
namespace {

constexpr std::array kElements{Element::kByte, Element::kFloat32, Element::kBFloat16,
                               Element::kFloat16};

// The spans of all pieces that hold `element`; make(piece, its index) makes one.
template <typename Make>
std::vector<Span> spans_of(std::span<const Piece> pieces, Element element, const Make& make) {
  std::vector<Span> spans;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].element == element) spans.push_back(make(pieces[i], i));
  }
  return spans;
}

void copy(std::vector<Span> spans, std::int64_t bytes_each, cudaStream_t stream, const char* what) {
  for (Span& span : spans) span.numel *= bytes_each;
  run_over<Copy>(spans, stream, what);
}

void cast(Element from, Element to, const std::vector<Span>& spans, cudaStream_t stream,
          const char* what) {
  if (from == to) return copy(spans, bytes_of(to), stream, what);
  with_number(from, [&](auto source) {
    with_number(to, [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      if constexpr (!std::is_same_v<From, To>) run_over<Map<From, To, false>>(spans, stream, what);
    });
  });
}

}  // namespace

std::int64_t pack(std::span<const Piece> pieces, Format format, std::byte* slot,
                  DeviceStream stream) {
  const SlotLayout layout(pieces, format);
  for (const Element element : kElements) {
    const auto spans = spans_of(pieces, element, [&](const Piece& piece, std::size_t i) {
      return Span{piece.data, slot + layout.offset(i), piece.numel};
    });
    if (spans.empty()) continue;
    if (format == Format::kFp8Block)
      pack_blocks(element, spans, stream);
    else
      cast(element, element_in_slot({nullptr, 0, element}, format), spans, stream, "pack");
  }
  return layout.num_bytes();
}

std::int64_t unpack(std::span<const Piece> pieces, Format format, const std::byte* slot,
                    DeviceStream stream) {
  const SlotLayout layout(pieces, format);
  for (const Element element : kElements) {
    const auto spans = spans_of(pieces, element, [&](const Piece& piece, std::size_t i) {
      return Span{slot + layout.offset(i), piece.data, piece.numel};
    });
    if (spans.empty()) continue;
    if (format == Format::kFp8Block)
      unpack_blocks(element, spans, stream);
    else
      cast(element_in_slot({nullptr, 0, element}, format), element, spans, stream, "unpack");
  }
  return layout.num_bytes();
}

}  // namespace pipert::kernels

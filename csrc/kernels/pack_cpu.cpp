#include <cstring>

#include "kernels/number_type.h"
#include "kernels/pack.h"

namespace pipert::kernels {
namespace {

// Slots may begin anywhere.
template <typename Number>
Number load(const std::byte* from, std::int64_t index) {
  Number number;
  std::memcpy(&number, from + index * static_cast<std::int64_t>(sizeof(Number)), sizeof(Number));
  return number;
}

template <typename Number>
void store(std::byte* to, std::int64_t index, Number number) {
  std::memcpy(to + index * static_cast<std::int64_t>(sizeof(Number)), &number, sizeof(Number));
}

template <typename From, typename To>
void cast(const std::byte* from, std::byte* to, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i)
    store(to, i, from_float<To>(to_float(load<From>(from, i))));
}

void cast(Element from_element, const std::byte* from, Element to_element, std::byte* to,
          std::int64_t numel) {
  if (numel == 0) return;
  if (from_element == to_element) {
    std::memcpy(to, from, static_cast<std::size_t>(numel * bytes_of(to_element)));
    return;
  }
  with_number(from_element, [&](auto source) {
    with_number(to_element,
                [&](auto target) { cast<decltype(source), decltype(target)>(from, to, numel); });
  });
}

template <typename From>
void pack_block(const std::byte* from, std::byte* codes, std::byte* scale, std::int64_t numel) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(to_float(load<From>(from, i)));
    if ((bits & kMagnitude) < kInfinity) largest = std::max(largest, bits & kMagnitude);
  }
  const std::uint32_t byte = scale_byte_of(largest);
  *scale = static_cast<std::byte>(byte);
  for (std::int64_t i = 0; i < numel; ++i) {
    const float scaled = to_float(load<From>(from, i)) * inverse_scale_of(byte);
    store(codes, i, from_float<Fp8>(scaled));
  }
}

template <typename To>
void unpack_block(const std::byte* codes, std::byte scale, std::byte* to, std::int64_t numel) {
  for (std::int64_t i = 0; i < numel; ++i) {
    const Fp8 code = load<Fp8>(codes, i);
    const bool is_nan = (code.bits & 0x7f) == 0x7f;  // a product may have another NaN
    const float value =
        is_nan ? kCanonicalNan : to_float(code) * scale_of(static_cast<std::uint32_t>(scale));
    store(to, i, from_float<To>(value));
  }
}

// function(first element, number of elements, place of the scale) for each block of a piece.
template <typename Function>
void for_each_block(std::int64_t numel, const Function& function) {
  for (std::int64_t begin = 0; begin < numel; begin += kFp8BlockSize)
    function(begin, std::min(kFp8BlockSize, numel - begin),
             align_in_slot(numel) + begin / kFp8BlockSize);
}

}  // namespace

std::int64_t pack(std::span<const Piece> pieces, Format format, std::byte* slot) {
  const SlotLayout layout(pieces, format);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    const auto* data = static_cast<const std::byte*>(piece.data);
    std::byte* place = slot + layout.offset(i);
    if (format != Format::kFp8Block) {
      cast(piece.element, data, element_in_slot(piece, format), place, piece.numel);
      continue;
    }
    with_number(piece.element, [&](auto number) {
      using Number = decltype(number);
      for_each_block(piece.numel, [&](std::int64_t begin, std::int64_t count, std::int64_t scale) {
        pack_block<Number>(data + begin * bytes_of(piece.element), place + begin, place + scale,
                           count);
      });
    });
  }
  return layout.num_bytes();
}

std::int64_t unpack(std::span<const Piece> pieces, Format format, const std::byte* slot) {
  const SlotLayout layout(pieces, format);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    auto* data = static_cast<std::byte*>(piece.data);
    const std::byte* place = slot + layout.offset(i);
    if (format != Format::kFp8Block) {
      cast(element_in_slot(piece, format), place, piece.element, data, piece.numel);
      continue;
    }
    with_number(piece.element, [&](auto number) {
      using Number = decltype(number);
      for_each_block(piece.numel, [&](std::int64_t begin, std::int64_t count, std::int64_t scale) {
        unpack_block<Number>(place + begin, place[scale], data + begin * bytes_of(piece.element),
                             count);
      });
    });
  }
  return layout.num_bytes();
}

}  // namespace pipert::kernels

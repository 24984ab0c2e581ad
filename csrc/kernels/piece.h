// Piece: the memory of one dense tensor, as kernels see it. Owns nothing; where a kernel runs on a
// stream, the memory must live until it is done.
#pragma once

#include <cstdint>
#include <span>

namespace pipert::kernels {

enum class Element : std::uint8_t {
  kByte,  // anything that is only copied
  kFloat32,
  kBFloat16,
  kFloat16,
};

struct Piece {
  void* data;  // aligned to its elements; may be null if there are none
  std::int64_t numel;
  Element element;
};

constexpr std::int64_t bytes_of(Element element) {
  switch (element) {
    case Element::kByte:
      return 1;
    case Element::kFloat32:
      return 4;
    case Element::kBFloat16:
    case Element::kFloat16:
      return 2;
  }
  return 0;
}

// ValueError if one holds kByte: `what` computes with numbers.
void check_are_numbers(std::span<const Piece> pieces, const char* what);

}  // namespace pipert::kernels

#include "base/utf8.h"

#include <cstddef>

namespace pipert {
namespace {

constexpr std::uint32_t kLast = 0x10FFFF;

bool is_surrogate(std::uint32_t code_point) { return code_point >= 0xD800 && code_point < 0xE000; }

// How many bytes a code point that begins with `lead` takes; 0 if none begins so.
std::size_t length_of(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC0) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF8 ? 4 : 0;
}

// The least code point that needs so many bytes.
std::uint32_t least_of(std::size_t length) {
  constexpr std::uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  return kLeast[length];
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t length = length_of(lead);
    if (length == 0 || length > text.size() - at) return false;
    std::uint32_t code_point = length == 1 ? lead : lead & (0xFFU >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
      const auto next = static_cast<unsigned char>(text[at + i]);
      if ((next & 0xC0U) != 0x80U) return false;
      code_point = code_point << 6U | (next & 0x3FU);
    }
    if (code_point < least_of(length) || code_point > kLast || is_surrogate(code_point))
      return false;
    at += length;
  }
  return true;
}

void append_utf8(std::string& out, std::uint32_t code_point) {
  std::size_t length = 1;
  while (length < 4 && code_point >= least_of(length + 1)) ++length;
  if (length == 1) {
    out += static_cast<char>(code_point);
    return;
  }
  const std::uint32_t marks = (0xF00U >> length) & 0xFFU;  // as many ones as there are bytes
  out += static_cast<char>(marks | code_point >> (6 * (length - 1)));
  for (std::size_t i = length - 1; i-- > 0;) {
    out += static_cast<char>(0x80U | ((code_point >> (6 * i)) & 0x3FU));
  }
}

}  // namespace pipert

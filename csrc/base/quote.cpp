#include "base/quote.h"

#include <cstddef>

namespace pipert {
namespace {

constexpr std::size_t kLongest = 60;

void append_escaped(std::string& out, char c) {
  constexpr std::string_view kHex = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(c);
  if (c == '"' || c == '\\') {
    out += '\\';
    out += c;
  } else if (byte >= 0x20 && byte < 0x7f) {
    out += c;
  } else {
    out += "\\x";
    out += kHex[byte >> 4U];
    out += kHex[byte & 0xfU];
  }
}

}  // namespace

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, kLongest)) append_escaped(out, c);
  out += '"';
  if (text.size() > kLongest) out += "...";
  return out;
}

}  // namespace pipert

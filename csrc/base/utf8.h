// utf8: text as Unicode has it, for formats that other programs read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pipert {

// Whether the bytes are UTF-8: no stray or missing continuation, no longer form than needed, no
// surrogate, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

// REQUIRES a code point that is no surrogate and at most 0x10FFFF.
void append_utf8(std::string& out, std::uint32_t code_point);

}  // namespace pipert

// The base floor: error texts and near names.

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/quote.h"
#include "base/structure.h"
#include "base/suggest.h"
#include "base/utf8.h"
#include "check.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"gpipe", "1f1b", "interleaved_1f1b"};

void quote_makes_any_bytes_printable() {
  CHECK(quote("0F0") == "\"0F0\"");
  CHECK(quote("a\"b\\") == "\"a\\\"b\\\\\"");
  CHECK(quote(std::string_view("\0\xff", 2)) == "\"\\x00\\xff\"");
  CHECK(quote(std::string(61, 'x')) == "\"" + std::string(60, 'x') + "\"...");
}

void near_names_come_nearest_first() {
  const auto near = nearest_names("1f1bb", kNames);
  CHECK(near.size() == 1 && near.front() == "1f1b");
  CHECK(nearest_names("GPIPE", kNames).front() == "gpipe");
  CHECK(nearest_names("xyzzy", kNames).empty());
  CHECK(nearest_names("", kNames).empty());
  CHECK(nearest_names(std::string(100'000, 'g'), kNames).empty());
}

void unknown_name_tells_near_and_known_ones() {
  CHECK(unknown_name("schedule", "gpip", kNames) ==
        "unknown schedule 'gpip': did you mean 'gpipe'? known: gpipe, 1f1b, interleaved_1f1b");
  CHECK(unknown_name("option", "x", {}) == "unknown option 'x'; known: none");
}

void utf8_is_what_unicode_allows() {
  for (const std::string_view good :
       {"", "F0", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CHECK(is_utf8(good));
  }
  for (const std::string_view bad :
       {"\x80", "\xc2", "\xc2\x41", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff", "a\xe2\x82"}) {
    CHECK(!is_utf8(bad));
  }
}

void every_code_point_is_appended_as_utf8() {
  std::string last;
  for (std::uint32_t code_point = 0; code_point <= 0x10FFFF; ++code_point) {
    if (code_point == 0xD800) code_point = 0xE000;  // surrogates are none
    std::string text;
    append_utf8(text, code_point);
    CHECK(is_utf8(text));
    CHECK(code_point == 0 || last < text);  // UTF-8 sorts as the code points do
    last = text;
  }
}

Structure real(double value) {
  return {.kind = Structure::Kind::kFloat, .real = value, .text = {}, .children = {}};
}

void structures_compare_floats_by_their_bits() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(real(0.0) == real(0.0));
  CHECK(!(real(0.0) == real(-0.0)));
  CHECK(real(nan) == real(nan));
  const auto list = [](double value) {
    return Structure{.kind = Structure::Kind::kList, .text = {}, .children = {real(value)}};
  };
  CHECK(list(nan) == list(nan));
  CHECK(!(list(0.0) == list(-0.0)));
}

void concat_streams_its_arguments() { CHECK(concat("rank ", 3, ", ", 0.5) == "rank 3, 0.5"); }

}  // namespace
}  // namespace pipert

int main() {
  pipert::quote_makes_any_bytes_printable();
  pipert::near_names_come_nearest_first();
  pipert::unknown_name_tells_near_and_known_ones();
  pipert::utf8_is_what_unicode_allows();
  pipert::every_code_point_is_appended_as_utf8();
  pipert::structures_compare_floats_by_their_bits();
  pipert::concat_streams_its_arguments();
}

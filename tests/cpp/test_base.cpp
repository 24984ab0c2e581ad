// The base floor: error texts and near names.

#include <array>

#include "base/error.h"
#include "base/quote.h"
#include "base/suggest.h"
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

void concat_streams_its_arguments() { CHECK(concat("rank ", 3, ", ", 0.5) == "rank 3, 0.5"); }

}  // namespace
}  // namespace pipert

int main() {
  pipert::quote_makes_any_bytes_printable();
  pipert::near_names_come_nearest_first();
  pipert::unknown_name_tells_near_and_known_ones();
  pipert::concat_streams_its_arguments();
}

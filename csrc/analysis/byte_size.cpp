#include "analysis/byte_size.h"

#include <array>
#include <cstdio>
#include <string_view>

namespace pipert {

std::string byte_size(double bytes) {
  constexpr std::array<std::string_view, 6> kUnits = {" B", " kB", " MB", " GB", " TB", " PB"};
  std::size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < kUnits.size()) {
    bytes /= 1000.0;
    ++unit;
  }
  std::array<char, 32> digits{};
  std::snprintf(digits.data(), digits.size(), "%.3g", bytes);
  return std::string(digits.data()).append(kUnits[unit]);
}

}  // namespace pipert

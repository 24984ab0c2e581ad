// Random: a small generator (splitmix64) whose numbers are the same on every machine.
#pragma once

#include <cstdint>

namespace pipert {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }
  // From 0 to below `end`. REQUIRES end > 0.
  int below(int end) {
    return static_cast<int>(((next() >> 32) * static_cast<std::uint64_t>(end)) >> 32);
  }
  // From 0 to below 1.
  double fraction() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  template <typename Values>
  auto pick(const Values& values) {
    return values[static_cast<std::size_t>(below(static_cast<int>(values.size())))];
  }

 private:
  std::uint64_t state_;
};

}  // namespace pipert

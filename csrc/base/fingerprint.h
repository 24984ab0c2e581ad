// Fingerprint: one number for a sequence of words, which differs (but for one chance in 2^64) where
// a word does. Not for what an enemy may choose.
#pragma once

#include <cstdint>

namespace pipert {

class Fingerprint {
 public:
  // FNV-1a over words, with a shift so that high bits reach low ones.
  void add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3;
    value_ ^= value_ >> 29;
  }
  void add_address(const void* address) { add(reinterpret_cast<std::uintptr_t>(address)); }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace pipert

#include "random/stream_key.h"

namespace pipert {

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t stream_seed(std::uint64_t seed, const StreamKey& key) {
  std::uint64_t result = mix(seed);
  result = mix(result ^ static_cast<std::uint64_t>(key.kind));
  result = mix(result ^ static_cast<std::uint64_t>(key.step));
  result = mix(result ^ static_cast<std::uint64_t>(key.layer));
  return mix(result ^ static_cast<std::uint64_t>(key.microbatch));
}

}  // namespace pipert

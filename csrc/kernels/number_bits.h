// The formats narrower than float32, bit by bit: what the CPU references compute with, and what the
// GPU's conversion instructions are tested against.
//
// Narrowing rounds to nearest, ties to even. A NaN of any sign and payload becomes the one that
// GPUs write: 0x7fff in 16 bits, 0x7f in e4m3, 0x7fffffff from float16 or e4m3 to float32. bfloat16
// widens by a shift, payload and all.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace pipert::kernels {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
struct Fp8 {  // e4m3: bias 7, no infinities, NaN in 0x7f and 0xff
  std::uint8_t bits;
};

inline constexpr std::uint32_t kMagnitude = 0x7fffffff;  // all but a float's sign
inline constexpr std::uint32_t kInfinity = 0x7f800000;
inline constexpr float kCanonicalNan = std::bit_cast<float>(kMagnitude);

constexpr float to_float(float value) { return value; }
constexpr float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
constexpr float to_float(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude > 0x7c00) return kCanonicalNan;
  if (magnitude == 0x7c00) return std::bit_cast<float>(sign | kInfinity);
  // As a float's exponent and mantissa it is too small by the difference of the biases, 127 - 15.
  const float small = std::bit_cast<float>(sign | magnitude << 13);
  return small * 0x1p112F;
}
constexpr float to_float(Fp8 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x80) << 24;
  const std::uint32_t magnitude = value.bits & 0x7f;
  if (magnitude == 0x7f) return kCanonicalNan;
  return std::bit_cast<float>(sign | magnitude << 20) * 0x1p120F;
}

template <typename Number>
constexpr Number from_float(float value);

template <>
constexpr float from_float<float>(float value) {
  return value;
}

template <>
constexpr BFloat16 from_float<BFloat16>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & kMagnitude) > kInfinity) return {0x7fff};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
constexpr Float16 from_float<Float16>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t magnitude = bits & kMagnitude;
  std::uint32_t narrow = 0x7c00;
  if (magnitude > kInfinity) return {0x7fff};
  if (magnitude < 0x38800000) {  // 2^-14: a subnormal; 0.5 has the unit that these round to
    narrow = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000;
  } else if (magnitude < 0x47800000) {  // 2^16
    narrow = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | narrow)};
}

// Saturates at 448; infinities become NaN (slot_layout.h, Note [Blocks of fp8]).
template <>
constexpr Fp8 from_float<Fp8>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24 & 0x80;
  const std::uint32_t magnitude = bits & kMagnitude;
  std::uint32_t narrow = 0x7e;
  if (magnitude >= kInfinity) return {0x7f};
  if (magnitude < 0x3c800000) {  // 2^-6: a subnormal; 2^14 has the unit that these round to
    narrow = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14F) - 0x46800000;
  } else if (magnitude < 0x43e00000) {  // 448
    narrow = (magnitude + 0x7ffff + (magnitude >> 20 & 1) - 0x3c000000) >> 20;
  }
  return {static_cast<std::uint8_t>(sign | narrow)};
}

// The scale byte of a block of fp8 whose largest finite magnitude has these bits. 0x600000 is the
// mantissa of 448: one that is larger carries into the exponent. With a scale above 2^119 a code
// could be beyond the range of float32.
constexpr std::uint32_t scale_byte_of(std::uint32_t largest_magnitude) {
  const std::uint32_t exponent = (largest_magnitude + 0x1fffff) >> 23;
  return std::clamp(exponent, 9U, 254U) - 8;
}
// 2^(byte - 127), for bytes 1 to 254, and its inverse.
constexpr float scale_of(std::uint32_t byte) { return std::bit_cast<float>(byte << 23); }
constexpr float inverse_scale_of(std::uint32_t byte) {
  return std::bit_cast<float>((254 - byte) << 23);
}

}  // namespace pipert::kernels

// The conversions of number_bits.h on a GPU, and loads and stores of several numbers at once.
//
// NaNs are picked by hand where an instruction's answer to them isn't documented: it costs nothing
// that can be measured beside memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>

#include "kernels/number_bits.h"

namespace pipert::kernels {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(BFloat16 value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}
__device__ inline float widen(Float16 value) {
  const float wide = __half2float(__ushort_as_half(value.bits));
  return isnan(wide) ? __uint_as_float(kMagnitude) : wide;
}

template <typename Number>
__device__ Number narrow(float value);
template <>
__device__ inline float narrow<float>(float value) {
  return value;
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float value) {
  const std::uint16_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return {isnan(value) ? std::uint16_t{0x7fff} : bits};
}
template <>
__device__ inline Float16 narrow<Float16>(float value) {
  const std::uint16_t bits = __half_as_ushort(__float2half_rn(value));
  return {isnan(value) ? std::uint16_t{0x7fff} : bits};
}

// kCount numbers that are loaded and stored at once: 4, 8 or 16 bytes.
template <typename Number, int kCount>
struct Vector {
  Number values[kCount];
};

template <int kBytes>
struct WordOf;
template <>
struct WordOf<4> {
  using Type = unsigned;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};
template <typename Value>
using Word = typename WordOf<sizeof(Value)>::Type;

__device__ inline bool is_aligned(const void* address, int bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % static_cast<unsigned>(bytes) == 0;
}

// Read once: the line may leave the caches first.
template <typename Value>
__device__ Value load_streaming(const void* address) {
  const Word<Value> word = __ldcs(static_cast<const Word<Value>*>(address));
  Value value;
  memcpy(&value, &word, sizeof(Value));
  return value;
}

template <typename Value>
__device__ Value load(const void* address) {
  const Word<Value> word = *static_cast<const Word<Value>*>(address);
  Value value;
  memcpy(&value, &word, sizeof(Value));
  return value;
}

template <typename Value>
__device__ void store(void* address, const Value& value) {
  Word<Value> word;
  memcpy(&word, &value, sizeof(Value));
  *static_cast<Word<Value>*>(address) = word;
}

// At any address: byte by byte if it has to be.
template <typename Number>
__device__ Number load_anywhere(const Number* address) {
  if (is_aligned(address, sizeof(Number))) return *address;
  Number number;
  for (unsigned i = 0; i < sizeof(Number); ++i)
    reinterpret_cast<std::uint8_t*>(&number)[i] = reinterpret_cast<const std::uint8_t*>(address)[i];
  return number;
}

template <typename Number>
__device__ void store_anywhere(Number* address, Number number) {
  if (is_aligned(address, sizeof(Number))) {
    *address = number;
    return;
  }
  for (unsigned i = 0; i < sizeof(Number); ++i)
    reinterpret_cast<std::uint8_t*>(address)[i] = reinterpret_cast<const std::uint8_t*>(&number)[i];
}

}  // namespace pipert::kernels

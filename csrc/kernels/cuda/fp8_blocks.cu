#include "kernels/cuda/fp8_blocks.h"
#include "kernels/cuda/numbers.h"
#include "kernels/number_type.h"
#include "kernels/slot_layout.h"

namespace pipert::kernels {
namespace {

constexpr int kBlockSize = static_cast<int>(kFp8BlockSize);
constexpr long long kAlignment = kSlotAlignment;

// Of a piece whose codes begin at `codes`, the scale of element `index`.
template <typename Byte>
__device__ Byte* scale_place(Byte* codes, long long numel, long long index) {
  return codes + (numel + kAlignment - 1) / kAlignment * kAlignment + index / kBlockSize;
}

// The product with the inverse scale; NaN for infinities too.
__device__ float scaled(float value, float inverse_scale) {
  return fmaf(value, 0.0F, value * inverse_scale);
}

// The codes of two scaled values, the first in the low byte.
__device__ std::uint16_t narrow_pair(float first, float second) {
#if __CUDA_ARCH__ >= 890
  return __nv_cvt_float2_to_fp8x2(make_float2(first, second), __NV_SATFINITE, __NV_E4M3);
#else
  const auto code_of = [](float value) -> unsigned {
    const unsigned bits = __float_as_uint(value);
    const unsigned sign = bits >> 24 & 0x80;
    const unsigned magnitude = bits & kMagnitude;
    if (magnitude >= kInfinity) return 0x7f;
    if (magnitude >= 0x43e00000) return sign | 0x7e;
    if (magnitude < 0x3c800000)
      return sign | (__float_as_uint(__uint_as_float(magnitude) + 0x1p14F) - 0x46800000);
    return sign | ((magnitude + 0x7ffff + (magnitude >> 20 & 1) - 0x3c000000) >> 20);
  };
  return static_cast<std::uint16_t>(code_of(first) | code_of(second) << 8);
#endif
}

__device__ float widen(std::uint8_t code, float scale) {
  const unsigned magnitude = code & 0x7fU;
  const unsigned sign = (code & 0x80U) << 24;
  const float value = __uint_as_float(sign | magnitude << 20) * 0x1p120F;
  return magnitude == 0x7f ? __uint_as_float(kMagnitude) : value * scale;
}

// A thread has kCount neighbours, kLanes threads of a warp have a block.
template <typename From>
struct PackBlocks {
  static constexpr int kCount = 16 / sizeof(From);
  static constexpr int kLanes = kBlockSize / kCount;
  static constexpr int kUnroll = 4;
  static constexpr int kChunkSize = kThreads * kUnroll * kCount;
  using Source = Vector<From, kCount>;
  using Codes = Vector<std::uint8_t, kCount>;

  __device__ static void run(const Chunk& chunk) {
    const From* source = static_cast<const From*>(chunk.span.source) + chunk.begin;
    auto* codes = static_cast<std::uint8_t*>(chunk.span.target);
    const bool aligned = is_aligned(source, sizeof(Source)) && is_aligned(codes, sizeof(Codes));
    std::uint8_t* scales = scale_place(codes, chunk.span.numel, chunk.begin);
    codes += chunk.begin;
    if (aligned && chunk.numel == kChunkSize)
      run_vectors<true>(source, codes, scales, kChunkSize);
    else
      run_vectors<false>(source, codes, scales, chunk.numel);
  }

 private:
  // All threads of the warp come to each shuffle: those beyond the end have zeros.
  template <bool kWhole>
  __device__ static void run_vectors(const From* source, std::uint8_t* codes, std::uint8_t* scales,
                                     int numel) {
    Source sources[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int begin = (i * kThreads + static_cast<int>(threadIdx.x)) * kCount;
      if (kWhole)
        sources[i] = load_streaming<Source>(source + begin);
      else
        for (int k = 0; k < kCount; ++k)
          sources[i].values[k] = begin + k < numel ? load_anywhere(source + begin + k) : From{};
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int begin = (i * kThreads + static_cast<int>(threadIdx.x)) * kCount;
      const unsigned scale = scale_byte(sources[i]);
      const Codes result = encode(sources[i], __uint_as_float((254 - scale) << 23));
      if (kWhole)
        store(codes + begin, result);
      else
        for (int k = 0; k < kCount && begin + k < numel; ++k) codes[begin + k] = result.values[k];
      if (threadIdx.x % kLanes == 0 && (kWhole || begin < numel))
        scales[begin / kBlockSize] = static_cast<std::uint8_t>(scale);
    }
  }

  // As scale_byte_of of number_bits.h, for the block that the thread has a part of.
  __device__ static unsigned scale_byte(const Source& part) {
    unsigned largest = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const unsigned magnitude = __float_as_uint(kernels::widen(part.values[k])) & kMagnitude;
      largest = max(largest, magnitude < kInfinity ? magnitude : 0);
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    return min(max((largest + 0x1fffff) >> 23, 9U), 254U) - 8;
  }

  __device__ static Codes encode(const Source& part, float inverse_scale) {
    std::uint16_t pairs[kCount / 2];
#pragma unroll
    for (int k = 0; k < kCount; k += 2)
      pairs[k / 2] = narrow_pair(scaled(kernels::widen(part.values[k]), inverse_scale),
                                 scaled(kernels::widen(part.values[k + 1]), inverse_scale));
    Codes codes;
    memcpy(&codes, pairs, sizeof(codes));
    return codes;
  }
};

template <typename To>
struct UnpackBlocks {
  static constexpr int kCount = 16 / sizeof(To);
  static constexpr int kUnroll = 4;
  static constexpr int kChunkSize = kThreads * kUnroll * kCount;
  using Codes = Vector<std::uint8_t, kCount>;
  using Target = Vector<To, kCount>;

  __device__ static void run(const Chunk& chunk) {
    const auto* codes = static_cast<const std::uint8_t*>(chunk.span.source);
    To* target = static_cast<To*>(chunk.span.target) + chunk.begin;
    const std::uint8_t* scales = scale_place(codes, chunk.span.numel, chunk.begin);
    codes += chunk.begin;
    const bool aligned = is_aligned(codes, sizeof(Codes)) && is_aligned(target, sizeof(Target));
    if (aligned && chunk.numel == kChunkSize) return run_whole(codes, scales, target);
    for (int i = static_cast<int>(threadIdx.x); i < chunk.numel; i += kThreads)
      store_anywhere(target + i, narrow<To>(widen(codes[i], scale_at(scales, i))));
  }

 private:
  __device__ static float scale_at(const std::uint8_t* scales, int index) {
    return __uint_as_float(static_cast<unsigned>(scales[index / kBlockSize]) << 23);
  }

  __device__ static void run_whole(const std::uint8_t* codes, const std::uint8_t* scales,
                                   To* target) {
    Codes parts[kUnroll];
    float part_scales[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int begin = (i * kThreads + static_cast<int>(threadIdx.x)) * kCount;
      parts[i] = load_streaming<Codes>(codes + begin);
      part_scales[i] = scale_at(scales, begin);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      Target result;
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        result.values[k] = narrow<To>(widen(parts[i].values[k], part_scales[i]));
      store(target + (i * kThreads + static_cast<int>(threadIdx.x)) * kCount, result);
    }
  }
};

}  // namespace

void pack_blocks(Element element, const std::vector<Span>& spans, cudaStream_t stream) {
  with_number(element,
              [&](auto number) { run_over<PackBlocks<decltype(number)>>(spans, stream, "pack"); });
}

void unpack_blocks(Element element, const std::vector<Span>& spans, cudaStream_t stream) {
  with_number(element, [&](auto number) {
    run_over<UnpackBlocks<decltype(number)>>(spans, stream, "unpack");
  });
}

}  // namespace pipert::kernels

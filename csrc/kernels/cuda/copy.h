// Copy: bytes as they are, in the widest words that both ends' alignment allows.
#pragma once

#include "kernels/cuda/numbers.h"
#include "kernels/cuda/spans.h"

namespace pipert::kernels {

struct Copy {
  static constexpr int kUnroll = 4;
  static constexpr int kChunkSize = kThreads * kUnroll * 16;

  __device__ static void run(const Chunk& chunk) {
    const auto* source = static_cast<const std::uint8_t*>(chunk.span.source) + chunk.begin;
    auto* target = static_cast<std::uint8_t*>(chunk.span.target) + chunk.begin;
    if (is_aligned(source, 16) && is_aligned(target, 16)) {
      if (chunk.numel == kChunkSize) return copy_whole(source, target);
      return copy_words<uint4>(source, target, chunk.numel);
    }
    if (is_aligned(source, 4) && is_aligned(target, 4))
      return copy_words<std::uint32_t>(source, target, chunk.numel);
    if (is_aligned(source, 2) && is_aligned(target, 2))
      return copy_words<std::uint16_t>(source, target, chunk.numel);
    copy_words<std::uint8_t>(source, target, chunk.numel);
  }

 private:
  __device__ static void copy_whole(const std::uint8_t* source, std::uint8_t* target) {
    uint4 words[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      words[i] = __ldcs(reinterpret_cast<const uint4*>(source) + i * kThreads + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
      reinterpret_cast<uint4*>(target)[i * kThreads + threadIdx.x] = words[i];
  }

  template <typename Words>
  __device__ static void copy_words(const std::uint8_t* __restrict__ source,
                                    std::uint8_t* __restrict__ target, int bytes) {
    const int num_words = bytes / static_cast<int>(sizeof(Words));
    const auto* from = reinterpret_cast<const Words*>(source);
    auto* to = reinterpret_cast<Words*>(target);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < num_words; i += kThreads)
      to[i] = __ldcs(from + i);
    const int done = num_words * static_cast<int>(sizeof(Words));
    const int rest = done + static_cast<int>(threadIdx.x);
    if (rest < bytes) target[rest] = source[rest];
  }
};

}  // namespace pipert::kernels

// Map: target[i] = cast(source[i]), or target[i] += cast(source[i]), element by element.
#pragma once

#include "kernels/cuda/numbers.h"
#include "kernels/cuda/spans.h"

namespace pipert::kernels {

// The wider type moves in accesses of 16 bytes, the narrower in as many numbers; each warp's are
// contiguous. Each thread has its loads of a chunk on the way before it uses the first.
template <typename From, typename To, bool kAdds>
struct Map {
  static constexpr int kWidest = sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To);
  static constexpr int kCount = 16 / kWidest;
  static constexpr int kUnroll = kAdds || sizeof(From) >= sizeof(To) ? 4 : 8;
  static constexpr int kChunkSize = kThreads * kUnroll * kCount;
  using Source = Vector<From, kCount>;
  using Target = Vector<To, kCount>;

  __device__ static void run(const Chunk& chunk) {
    const From* source = static_cast<const From*>(chunk.span.source) + chunk.begin;
    To* target = static_cast<To*>(chunk.span.target) + chunk.begin;
    const bool aligned = is_aligned(source, sizeof(Source)) && is_aligned(target, sizeof(Target));
    if (aligned && chunk.numel == kChunkSize) {
      run_vectors<true>(source, target, kThreads * kUnroll);
    } else if (aligned) {
      const int num_vectors = chunk.numel / kCount;
      run_vectors<false>(source, target, num_vectors);
      run_numbers(source, target, num_vectors * kCount, chunk.numel);
    } else {
      run_numbers(source, target, 0, chunk.numel);
    }
  }

 private:
  template <bool kWhole>
  __device__ static void run_vectors(const From* source, To* target, int num_vectors) {
    Source sources[kUnroll];
    Target targets[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      if (!kWhole && index >= num_vectors) continue;
      sources[i] = load_streaming<Source>(source + index * kCount);
      if (kAdds) targets[i] = load<Target>(target + index * kCount);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      if (!kWhole && index >= num_vectors) continue;
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        targets[i].values[k] = combine(targets[i].values[k], sources[i].values[k]);
      store(target + index * kCount, targets[i]);
    }
  }

  __device__ static void run_numbers(const From* source, To* target, int begin, int end) {
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
      const To before = kAdds ? load_anywhere(target + i) : To{};
      store_anywhere(target + i, combine(before, load_anywhere(source + i)));
    }
  }

  __device__ static To combine(To before, From from) {
    return narrow<To>(kAdds ? widen(before) + widen(from) : widen(from));
  }
};

}  // namespace pipert::kernels

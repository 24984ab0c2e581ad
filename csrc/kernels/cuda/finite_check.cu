#include <cfloat>

#include "kernels/cuda/launch_counter.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/spans.h"
#include "kernels/finite_check.h"
#include "kernels/number_type.h"

// Note [Squares in float]
// A conversion to double and a double addition for each number would be slower than memory. So the
// squares of four vectors of 16 bytes are added up in float, and doubles add up these sums. Each
// vector has a chain of its own of at most 8 additions, then there are two more: a relative error
// of at most 10 * 2^-24 in the sum, half of that in the norm. Where float loses more than rounding,
// the same numbers are added up in double: if a square overflowed (or a number isn't finite), the
// sum isn't finite; and squares below float's normal numbers, of an error of 2^-150 each, are
// nothing beside a sum of 2^-120.
namespace pipert::kernels {
namespace {

constexpr int kGroup = 4;   // vectors whose squares are added up in float
constexpr int kUnroll = 8;  // vectors of a thread that are on their way at once
constexpr int kVectorBytes = 16;
constexpr int kChunkBytes = kThreads * kUnroll * kVectorBytes;
constexpr unsigned kBlocksPerMultiprocessor = 4;  // all at once: kThreads of 64 registers each
constexpr float kLeastSum = 0x1p-120F;
constexpr unsigned kMostBlocks = kMaxPartialSums - 1;  // the last place is for a counter

__device__ unsigned counters[kNumCounters];  // launch_counter.h, Note [The last block]

template <typename Number>
using Source = Vector<Number, kVectorBytes / static_cast<int>(sizeof(Number))>;

// What the launches of one check share.
struct Check {
  FiniteResult result;
  unsigned counter;  // kNumCounters: the one after the partial sums
};

struct Launch {
  Element element;
  SpanTable table;
  bool is_first;
  bool is_last;
};

__device__ void add_square(double& sum, float number) {
  const auto value = static_cast<double>(number);
  sum = fma(value, value, sum);
}

// The vectors first, first + kThreads and so on, before end: loaded again, as this is rare and
// their registers are better spent on loads. Not inlined for the same reason.
template <typename Number>
__device__ __noinline__ double exact_sum_of_group(const Number* source, int first, int end) {
  double sum = 0;
#pragma unroll 1
  for (int index = first; index < end; index += kThreads) {
    const auto vector = load<Source<Number>>(reinterpret_cast<const uint4*>(source) + index);
#pragma unroll
    for (const Number number : vector.values) add_square(sum, widen(number));
  }
  return sum;
}

// In `bits`, those of the numbers' magnitudes.
template <typename Number>
__device__ unsigned any_magnitude(const uint4& words, unsigned bits) {
  constexpr unsigned kMagnitudes = sizeof(Number) == 4 ? kMagnitude : 0x7fff7fff;
  return bits | ((words.x | words.y | words.z | words.w) & kMagnitudes);
}

template <typename Number>
__device__ float sum_in_float(const uint4& words) {
  Source<Number> numbers;
  memcpy(&numbers, &words, sizeof(words));
  float sum = 0;
#pragma unroll
  for (const Number number : numbers.values) sum = fmaf(widen(number), widen(number), sum);
  return sum;
}

template <typename Number>
__device__ double sum_of_group(const uint4* group, const Number* source, int first, int end) {
  const float sum = (sum_in_float<Number>(group[0]) + sum_in_float<Number>(group[1])) +
                    (sum_in_float<Number>(group[2]) + sum_in_float<Number>(group[3]));
  if (sum >= kLeastSum && sum <= FLT_MAX) return sum;
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) bits = any_magnitude<Number>(group[i], bits);
  if (bits == 0) return 0;  // as whole rows of an embedding's gradient are
  return exact_sum_of_group(source, first, min(end, first + kGroup * kThreads));
}

template <bool kWhole, typename Number>
__device__ double sum_of_vectors(const Number* source, int num_vectors) {
  uint4 words[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    words[i] = uint4{};
    if (kWhole || index < num_vectors)
      words[i] = __ldcs(reinterpret_cast<const uint4*>(source) + index);
  }
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kUnroll; i += kGroup) {
    const int first = i * kThreads + static_cast<int>(threadIdx.x);
    sum += sum_of_group(words + i, source, first, num_vectors);
  }
  return sum;
}

template <typename Number>
__device__ double sum_of_chunk(const Number* source, int numel) {
  constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(Number));
  constexpr int kVectors = kThreads * kUnroll;
  int begin = 0;
  double sum = 0;
  if (is_aligned(source, kVectorBytes)) {
    if (numel == kVectors * kCount) return sum_of_vectors<true>(source, kVectors);
    sum = sum_of_vectors<false>(source, numel / kCount);
    begin = numel / kCount * kCount;
  }
  for (int i = begin + static_cast<int>(threadIdx.x); i < numel; i += kThreads)
    add_square(sum, widen(source[i]));
  return sum;
}

// The block's sum, in thread 0; always in the same order.
__device__ double sum_of_block(double sum) {
  __shared__ double warp_sums[kThreads / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_down_sync(0xffffffff, sum, distance);
  __syncthreads();  // thread 0 may be reading the sums of the call before
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return 0;
  double total = 0;
  for (const double warp_sum : warp_sums) total += warp_sum;
  return total;
}

// By all threads of a block, after its thread 0 has left what others shall see.
__device__ bool is_last_block(unsigned* counter) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

__device__ void finish(const FiniteResult& result) {
  double sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads)
    sum += __ldcg(result.partial_sums + i);
  const double total = sum_of_block(sum);
  if (threadIdx.x > 0) return;
  *result.flag = isfinite(total) ? 0 : 1;
  *result.norm = static_cast<float>(sqrt(total));
}

template <typename Number>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    add_squares(const __grid_constant__ SpanTable table, Check check, bool is_first, bool is_last) {
  constexpr int kChunkSize = kChunkBytes / static_cast<int>(sizeof(Number));
  double sum = 0;
  for (unsigned index = blockIdx.x; index < num_chunks(table); index += gridDim.x) {
    const Chunk chunk = find_chunk(table, index, kChunkSize);
    sum += sum_of_chunk(static_cast<const Number*>(chunk.span.source) + chunk.begin, chunk.numel);
  }
  double* partial_sums = check.result.partial_sums;
  const double block_sum = sum_of_block(sum);
  if (threadIdx.x == 0)
    partial_sums[blockIdx.x] = is_first ? block_sum : partial_sums[blockIdx.x] + block_sum;
  if (!is_last) return;
  unsigned* counter = check.counter < kNumCounters
                          ? counters + check.counter
                          : reinterpret_cast<unsigned*>(partial_sums + kMostBlocks);
  if (is_last_block(counter)) finish(check.result);
}

std::vector<Launch> launches_for(std::span<const Piece> pieces) {
  std::vector<Launch> launches;
  for (const Element element : {Element::kFloat32, Element::kBFloat16, Element::kFloat16}) {
    std::vector<Span> spans;
    for (const Piece& piece : pieces) {
      if (piece.element == element) spans.push_back({piece.data, nullptr, piece.numel});
    }
    const int chunk_size = kChunkBytes / static_cast<int>(bytes_of(element));
    for_each_table(spans, chunk_size, [&](const SpanTable& table, unsigned) {
      launches.push_back({element, table, launches.empty(), false});
    });
  }
  if (!launches.empty()) launches.back().is_last = true;
  return launches;
}

// Enough for the largest of them: all have the same blocks, as each block has one partial sum.
unsigned num_blocks_for(const std::vector<Launch>& launches) {
  unsigned most_chunks = 0;
  for (const Launch& launch : launches)
    most_chunks = std::max(most_chunks, launch.table.first_chunk[launch.table.num_spans]);
  return std::min({most_chunks, num_multiprocessors() * kBlocksPerMultiprocessor, kMostBlocks});
}

}  // namespace

void check_finite(std::span<const Piece> pieces, const FiniteResult& result, DeviceStream stream) {
  check_are_numbers(pieces, "check_finite");
  const std::vector<Launch> launches = launches_for(pieces);
  if (launches.empty()) {
    check(cudaMemsetAsync(result.flag, 0, sizeof(*result.flag), stream), "check_finite");
    check(cudaMemsetAsync(result.norm, 0, sizeof(*result.norm), stream), "check_finite");
    return;
  }
  const Check shared{result, counter_for(stream)};
  if (shared.counter == kNumCounters) {
    check(cudaMemsetAsync(result.partial_sums + kMostBlocks, 0, sizeof(unsigned), stream),
          "check_finite");
  }
  const unsigned num_blocks = num_blocks_for(launches);
  for (const Launch& launch : launches) {
    with_number(launch.element, [&](auto number) {
      add_squares<decltype(number)><<<num_blocks, kThreads, 0, stream>>>(
          launch.table, shared, launch.is_first, launch.is_last);
    });
    check(cudaGetLastError(), "check_finite");
  }
}

}  // namespace pipert::kernels

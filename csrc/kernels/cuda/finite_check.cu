#include "kernels/cuda/numbers.h"
#include "kernels/cuda/spans.h"
#include "kernels/finite_check.h"
#include "kernels/number_type.h"

namespace pipert::kernels {
namespace {

constexpr int kUnroll = 4;
constexpr int kSums = 4;  // of a thread, so that it needn't wait for one addition with the next
constexpr int kLastThreads = 1024;

template <typename Number>
constexpr int kCount = 16 / static_cast<int>(sizeof(Number));
template <typename Number>
constexpr int kChunkSize = kThreads * kUnroll * kCount<Number>;

__device__ void add_square(double& sum, float number) {
  const auto value = static_cast<double>(number);
  sum = fma(value, value, sum);
}

template <typename Number>
__device__ void add_whole_chunk(const Number* source, double (&sums)[kSums]) {
  using Source = Vector<Number, kCount<Number>>;
  Source sources[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i)
    sources[i] = load_streaming<Source>(source + (i * kThreads + static_cast<int>(threadIdx.x)) *
                                                     kCount<Number>);
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
    for (int k = 0; k < kCount<Number>; ++k)
      add_square(sums[k % kSums], widen(sources[i].values[k]));
  }
}

// The block's sum, in thread 0; always in the same order.
template <int kBlockThreads>
__device__ double sum_of_block(double sum) {
  __shared__ double warp_sums[kBlockThreads / 32];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_down_sync(0xffffffff, sum, distance);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return 0;
  double total = 0;
  for (const double warp_sum : warp_sums) total += warp_sum;
  return total;
}

template <typename Number>
__global__ void __launch_bounds__(kThreads)
    add_squares(const __grid_constant__ SpanTable table, double* partial_sums, bool is_first) {
  double sums[kSums] = {};
  for (unsigned index = blockIdx.x; index < num_chunks(table); index += gridDim.x) {
    const Chunk chunk = find_chunk(table, index, kChunkSize<Number>);
    const Number* source = static_cast<const Number*>(chunk.span.source) + chunk.begin;
    if (chunk.numel == kChunkSize<Number> && is_aligned(source, 16)) {
      add_whole_chunk(source, sums);
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < chunk.numel; i += kThreads)
        add_square(sums[0], widen(source[i]));
    }
  }
  const double sum = sum_of_block<kThreads>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x > 0) return;
  partial_sums[blockIdx.x] = is_first ? sum : partial_sums[blockIdx.x] + sum;
}

__global__ void __launch_bounds__(kLastThreads)
    finish(const double* partial_sums, unsigned num_sums, std::int32_t* flag, float* norm) {
  double sum = 0;
  for (unsigned i = threadIdx.x; i < num_sums; i += kLastThreads) sum += partial_sums[i];
  const double total = sum_of_block<kLastThreads>(sum);
  if (threadIdx.x > 0) return;
  *flag = isfinite(total) ? 0 : 1;
  *norm = static_cast<float>(sqrt(total));
}

}  // namespace

void check_finite(std::span<const Piece> pieces, const FiniteResult& result, DeviceStream stream) {
  check_are_numbers(pieces, "check_finite");
  const unsigned num_blocks =
      std::min(num_multiprocessors() * 8, static_cast<unsigned>(kMaxPartialSums));
  bool is_first = true;
  for (const Element element : {Element::kFloat32, Element::kBFloat16, Element::kFloat16}) {
    std::vector<Span> spans;
    for (const Piece& piece : pieces) {
      if (piece.element == element) spans.push_back({piece.data, nullptr, piece.numel});
    }
    with_number(element, [&](auto number) {
      using Number = decltype(number);
      for_each_table(spans, kChunkSize<Number>, [&](const SpanTable& table, unsigned) {
        add_squares<Number>
            <<<num_blocks, kThreads, 0, stream>>>(table, result.partial_sums, is_first);
        check(cudaGetLastError(), "check_finite");
        is_first = false;
      });
    });
  }
  finish<<<1, kLastThreads, 0, stream>>>(result.partial_sums, is_first ? 0 : num_blocks,
                                         result.flag, result.norm);
  check(cudaGetLastError(), "check_finite");
}

}  // namespace pipert::kernels

// Kernels over many tensors at once: the tensors' addresses travel in the kernel's arguments, so
// one launch serves up to kSpansPerLaunch of them and needs no copy from the host.
//
// The work is cut into chunks of equal size; a block takes chunk after chunk, all blocks side by
// side, and finds the span that a chunk lies in by bisection.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "base/error.h"

namespace pipert::kernels {

constexpr int kThreads = 256;
constexpr unsigned kSpansPerLaunch = 128;

struct Span {
  const void* source;
  void* target;
  long long numel;
};

struct SpanTable {
  Span spans[kSpansPerLaunch];
  unsigned first_chunk[kSpansPerLaunch + 1];  // of each span, and the number of chunks
  unsigned num_spans = 0;
};
static_assert(sizeof(SpanTable) <= 4000, "kernel arguments are at most 4 KB before CUDA 12.1");

struct Chunk {
  Span span;
  long long begin;  // its first element in the span
  int numel;
};

__device__ inline unsigned num_chunks(const SpanTable& table) {
  return table.first_chunk[table.num_spans];
}

__device__ inline Chunk find_chunk(const SpanTable& table, unsigned index, int chunk_size) {
  unsigned low = 0;
  unsigned high = table.num_spans;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (table.first_chunk[middle] <= index ? low : high) = middle;
  }
  const Span span = table.spans[low];
  const long long begin = static_cast<long long>(index - table.first_chunk[low]) * chunk_size;
  return {span, begin,
          static_cast<int>(min(span.numel - begin, static_cast<long long>(chunk_size)))};
}

// Op: kChunkSize elements, and run(Chunk), called by all threads of a block.
template <typename Op>
__global__ void __launch_bounds__(kThreads) span_kernel(const __grid_constant__ SpanTable table) {
  for (unsigned index = blockIdx.x; index < num_chunks(table); index += gridDim.x)
    Op::run(find_chunk(table, index, Op::kChunkSize));
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(concat(what, " failed: ", cudaGetErrorString(status)));
}

inline unsigned num_multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return static_cast<unsigned>(count);
}

// launch(table, number of chunks) for as many tables as the spans fill. Empty spans are left out.
template <typename Launch>
void for_each_table(const std::vector<Span>& spans, int chunk_size, const Launch& launch) {
  SpanTable table;
  table.first_chunk[0] = 0;
  const auto flush = [&] {
    if (table.num_spans > 0) launch(table, table.first_chunk[table.num_spans]);
    table.num_spans = 0;
  };
  for (const Span& span : spans) {
    if (span.numel == 0) continue;
    const unsigned index = table.num_spans++;
    const auto chunks = static_cast<unsigned>((span.numel + chunk_size - 1) / chunk_size);
    table.spans[index] = span;
    table.first_chunk[index + 1] = table.first_chunk[index] + chunks;
    if (table.num_spans == kSpansPerLaunch) flush();
  }
  flush();
}

template <typename Op>
void run_over(const std::vector<Span>& spans, cudaStream_t stream, const char* what) {
  if (spans.empty()) return;
  const unsigned most_blocks = num_multiprocessors() * 16;
  for_each_table(spans, Op::kChunkSize, [&](const SpanTable& table, unsigned chunks) {
    span_kernel<Op><<<std::min(chunks, most_blocks), kThreads, 0, stream>>>(table);
    check(cudaGetLastError(), what);
  });
}

}  // namespace pipert::kernels

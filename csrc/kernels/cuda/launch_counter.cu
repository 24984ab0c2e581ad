#include "kernels/cuda/launch_counter.h"

#include <mutex>
#include <unordered_map>

#include "kernels/cuda/spans.h"

namespace pipert::kernels {
namespace {

bool is_recorded(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

// By a stream's Id, which is never another's, as a destroyed stream's handle may be. Streams of two
// devices may share an index: each device has counters of its own.
unsigned counter_for(cudaStream_t stream) {
  static std::mutex mutex;
  static std::unordered_map<unsigned long long, unsigned> counter_of_stream;
  static unsigned num_taken = 0;
  const bool recorded = is_recorded(stream);
  unsigned long long id = 0;
  if (!recorded) check(cudaStreamGetId(stream, &id), "cudaStreamGetId");
  const std::lock_guard lock(mutex);
  if (!recorded) {
    const auto known = counter_of_stream.find(id);
    if (known != counter_of_stream.end()) return known->second;
  }
  if (num_taken == kNumCounters) return kNumCounters;
  if (!recorded) counter_of_stream[id] = num_taken;
  return num_taken++;
}

}  // namespace pipert::kernels

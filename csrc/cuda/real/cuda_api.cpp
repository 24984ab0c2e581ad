#include "cuda/cuda_api.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pipert::cuda {
namespace {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // or the next to ask would be told of this one
  throw CudaError(concat(call, " failed: ", cudaGetErrorString(status)));
}

// Through the runtime, so that libcuda, which a machine without a driver lacks, isn't linked.
template <typename Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), name);
#else
  check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), name);
#endif
  if (result != cudaDriverEntryPointSuccess || found == nullptr)
    throw CudaError(concat("this driver lacks ", name));
  return reinterpret_cast<Function*>(found);
}

void check(CUresult status, const char* call) {
  if (status == CUDA_SUCCESS) return;
  static const auto get_text =
      driver_function<CUresult(CUresult, const char**)>("cuGetErrorString");
  const char* text = nullptr;
  get_text(status, &text);
  throw CudaError(concat(call, " failed: ", text == nullptr ? "unknown error" : text));
}

using WordFunction = CUresult(CUstream, CUdeviceptr, cuuint32_t, unsigned int);

void copy(void* destination, const void* source, std::size_t num_bytes, cudaMemcpyKind kind,
          Stream stream) {
  if (num_bytes == 0) return;
  check(cudaMemcpyAsync(destination, source, num_bytes, kind, stream), "cudaMemcpyAsync");
}

// Whether it has come, of what a query answered.
bool has_come(cudaError_t status, const char* call) {
  if (status == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  check(status, call);
  return true;
}

// Streams that have no owner. They aren't destroyed: torch's caching allocator asks a stream that
// it was told of when the tensor is freed, which may be after the channel.
using StreamKind = std::pair<int, StreamPriority>;  // a device's
struct StreamPool {
  std::mutex mutex;
  std::map<Stream, StreamKind> kinds;  // of all that were made
  std::map<StreamKind, std::vector<Stream>> idle;
};

StreamPool& streams() {
  static auto& pool = *new StreamPool;  // never destroyed: others may come later
  return pool;
}

}  // namespace

void* allocate(std::size_t num_bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, num_bytes), "cudaMalloc");
  return memory;
}

void deallocate(void* memory) { check(cudaFree(memory), "cudaFree"); }

MemoryHandle export_memory(void* memory) {
  static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(MemoryHandle));
  cudaIpcMemHandle_t handle;
  check(cudaIpcGetMemHandle(&handle, memory), "cudaIpcGetMemHandle");
  MemoryHandle exported;
  std::memcpy(exported.bytes.data(), &handle, sizeof(handle));
  return exported;
}

void* import_memory(const MemoryHandle& handle) {
  cudaIpcMemHandle_t imported;
  std::memcpy(&imported, handle.bytes.data(), sizeof(imported));
  void* memory = nullptr;
  check(cudaIpcOpenMemHandle(&memory, imported, cudaIpcMemLazyEnablePeerAccess),
        "cudaIpcOpenMemHandle");
  return memory;
}

void close_imported(void* memory) { check(cudaIpcCloseMemHandle(memory), "cudaIpcCloseMemHandle"); }

void* register_host(void* memory, std::size_t num_bytes) {
  check(cudaHostRegister(memory, num_bytes, cudaHostRegisterMapped | cudaHostRegisterPortable),
        "cudaHostRegister");
  void* on_device = nullptr;
  check(cudaHostGetDevicePointer(&on_device, memory, 0), "cudaHostGetDevicePointer");
  return on_device;
}

void unregister_host(void* memory) { check(cudaHostUnregister(memory), "cudaHostUnregister"); }

Stream create_stream(StreamPriority priority) {
  StreamPool& pool = streams();
  StreamKind kind{0, priority};
  check(cudaGetDevice(&kind.first), "cudaGetDevice");
  const std::lock_guard lock(pool.mutex);
  if (std::vector<Stream>& idle = pool.idle[kind]; !idle.empty()) {
    const Stream kept = idle.back();
    idle.pop_back();
    return kept;
  }
  int least = 0;
  int greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                     priority == StreamPriority::kHighest ? greatest : least),
        "cudaStreamCreateWithPriority");
  pool.kinds[stream] = kind;
  return stream;
}

void destroy_stream(Stream stream) {
  if (!is_idle(stream)) return;  // nobody shall wait for what it was given
  StreamPool& pool = streams();
  const std::lock_guard lock(pool.mutex);
  pool.idle[pool.kinds.at(stream)].push_back(stream);
}

void synchronize(Stream stream) { check(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }

bool is_idle(Stream stream) { return has_come(cudaStreamQuery(stream), "cudaStreamQuery"); }

bool is_captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess)
    return status != cudaStreamCaptureStatusNone;
  (void)cudaGetLastError();
  return false;
}

Event create_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return event;
}

Event create_timing_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "cudaEventCreate");
  return event;
}

void destroy_event(Event event) { check(cudaEventDestroy(event), "cudaEventDestroy"); }

void record(Event event, Stream stream) {
  check(cudaEventRecord(event, stream), "cudaEventRecord");
}

void wait(Stream stream, Event event) {
  check(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
}

bool is_done(Event event) { return has_come(cudaEventQuery(event), "cudaEventQuery"); }

void synchronize(Event event) { check(cudaEventSynchronize(event), "cudaEventSynchronize"); }

float milliseconds_between(Event first, Event second) {
  float milliseconds = 0.0F;
  check(cudaEventElapsedTime(&milliseconds, first, second), "cudaEventElapsedTime");
  return milliseconds;
}

void copy_on_device(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, cudaMemcpyDefault, stream);  // the two may be of two devices
}

void copy_to_device(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, cudaMemcpyHostToDevice, stream);
}

void copy_to_host(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, cudaMemcpyDeviceToHost, stream);
}

void write_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  static const auto write = driver_function<WordFunction>("cuStreamWriteValue32");
  check(write(stream, reinterpret_cast<CUdeviceptr>(word), value, CU_STREAM_WRITE_VALUE_DEFAULT),
        "cuStreamWriteValue32");
}

void wait_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  static const auto wait_for = driver_function<WordFunction>("cuStreamWaitValue32");
  check(wait_for(stream, reinterpret_cast<CUdeviceptr>(word), value, CU_STREAM_WAIT_VALUE_GEQ),
        "cuStreamWaitValue32");
}

}  // namespace pipert::cuda

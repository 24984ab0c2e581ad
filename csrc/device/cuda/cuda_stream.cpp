#include "device/cuda/cuda_stream.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace pipert {
namespace {

enum class PoolKind : std::uint8_t { kEvents, kComputeStreams, kTransferStreams };

void* make_event(c10::DeviceIndex device) {
  const c10::cuda::CUDAGuard guard(device);
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return event;
}

void* make_stream(c10::DeviceIndex device, LanePriority priority) {
  const c10::cuda::CUDAGuard guard(device);
  int least = 0;
  int greatest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest),
             "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                          priority == LanePriority::kTransfer ? greatest : least),
             "cudaStreamCreateWithPriority");
  return stream;
}

HandlePool& pool(c10::DeviceIndex device, PoolKind kind) {
  static auto* const mutex = new std::mutex;  // never destroyed, as the pools
  static auto* const pools =
      new std::map<std::pair<c10::DeviceIndex, PoolKind>, std::unique_ptr<HandlePool>>;
  const std::lock_guard lock(*mutex);
  auto& entry = (*pools)[{device, kind}];
  if (entry == nullptr) {
    entry = std::make_unique<HandlePool>([device, kind]() -> void* {
      switch (kind) {
        case PoolKind::kEvents:
          return make_event(device);
        case PoolKind::kComputeStreams:
          return make_stream(device, LanePriority::kCompute);
        case PoolKind::kTransferStreams:
          return make_stream(device, LanePriority::kTransfer);
      }
      return nullptr;
    });
  }
  return *entry;
}

struct CurrentStream final : CurrentLane {
  explicit CurrentStream(const c10::cuda::CUDAStream& stream) : guard(stream) {}
  c10::cuda::CUDAStreamGuard guard;
};

c10::cuda::CUDAStream as_torch_stream(cudaStream_t stream, c10::DeviceIndex device) {
  return c10::cuda::getStreamFromExternal(stream, device);
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  // Else torch would report it again at its own next call.
  (void)cudaGetLastError();
  TORCH_CHECK(false, call, " failed: ", cudaGetErrorString(status));
}

HandlePool& ordering_events(c10::DeviceIndex device) { return pool(device, PoolKind::kEvents); }

HandlePool& lane_streams(c10::DeviceIndex device, LanePriority priority) {
  const bool is_transfer = priority == LanePriority::kTransfer;
  return pool(device, is_transfer ? PoolKind::kTransferStreams : PoolKind::kComputeStreams);
}

void CudaMark::record(cudaStream_t stream) {
  check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  is_recorded_ = true;
}

void CudaMark::block(cudaStream_t stream) const {
  TORCH_INTERNAL_ASSERT(is_recorded_, "a lane waits for a mark that was never recorded");
  check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

void CudaStreamLane::adopt(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda() || !tensor.has_storage()) return;
  c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(),
                                                as_torch_stream(stream_, device_));
}

std::unique_ptr<CurrentLane> CudaStreamLane::make_current() {
  return std::make_unique<CurrentStream>(as_torch_stream(stream_, device_));
}

}  // namespace pipert

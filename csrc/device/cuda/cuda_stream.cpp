#include "device/cuda/cuda_stream.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace pipert {
namespace {

enum class PoolKind : std::uint8_t { kEvents, kComputeStreams, kTransferStreams };

void* make_event(c10::DeviceIndex device) {
  const c10::DeviceGuard guard({c10::kCUDA, device});
  return cuda::create_event();
}

void* make_stream(c10::DeviceIndex device, cuda::StreamPriority priority) {
  const c10::DeviceGuard guard({c10::kCUDA, device});
  return cuda::create_stream(priority);
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
          return make_stream(device, cuda::StreamPriority::kLowest);
        case PoolKind::kTransferStreams:
          return make_stream(device, cuda::StreamPriority::kHighest);
      }
      return nullptr;
    });
  }
  return *entry;
}

struct CurrentStream final : CurrentLane {
  explicit CurrentStream(const c10::Stream& stream) : guard(stream) {}
  c10::StreamGuard guard;
};

}  // namespace

HandlePool& ordering_events(c10::DeviceIndex device) { return pool(device, PoolKind::kEvents); }

HandlePool& lane_streams(c10::DeviceIndex device, LanePriority priority) {
  const bool is_transfer = priority == LanePriority::kTransfer;
  return pool(device, is_transfer ? PoolKind::kTransferStreams : PoolKind::kComputeStreams);
}

void CudaMark::record(cuda::Stream stream) {
  cuda::record(event_, stream);
  is_recorded_ = true;
}

void CudaMark::block(cuda::Stream stream) const {
  TORCH_INTERNAL_ASSERT(is_recorded_, "a lane waits for a mark that was never recorded");
  cuda::wait(stream, event_);
}

void CudaStreamLane::adopt(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda() || !tensor.has_storage()) return;
  const c10::impl::VirtualGuardImpl allocator(c10::kCUDA);
  allocator.recordDataPtrOnStream(tensor.storage().data_ptr(), torch_stream_);
}

std::unique_ptr<CurrentLane> CudaStreamLane::make_current() {
  return std::make_unique<CurrentStream>(torch_stream_);
}

}  // namespace pipert

#include "device/cuda_lane.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "device/cuda/cuda_stream.h"
#include "device/cuda/torch_stream.h"

namespace pipert {
namespace {

// Has a stream to itself, as long as it lives. Its handle names its device, so the calling thread's
// current device is of no importance.
class OwnStreamLane final : public CudaStreamLane {
 public:
  OwnStreamLane(c10::DeviceIndex device, HandlePool& pool)
      : OwnStreamLane(device, pool, static_cast<cuda::Stream>(pool.take())) {}

  ~OwnStreamLane() override {
    // The next owner shall not wait for what this one left. At interpreter exit the driver may be
    // gone already; there is nobody left to tell.
    try {
      cuda::synchronize(stream());
    } catch (const CudaError&) {
    }
    pool_.give_back(stream());
  }

  OwnStreamLane(const OwnStreamLane&) = delete;
  OwnStreamLane& operator=(const OwnStreamLane&) = delete;

 private:
  OwnStreamLane(c10::DeviceIndex device, HandlePool& pool, cuda::Stream stream)
      : CudaStreamLane(stream, as_torch_stream(stream, device)), pool_(pool) {}

  HandlePool& pool_;
};

// A stream of the caller's. The default one has no handle of its own: which device's it is, the
// thread's current device tells.
class CallerLane final : public CudaStreamLane {
 public:
  using CudaStreamLane::CudaStreamLane;

  void record(Mark& mark) override {
    const c10::DeviceGuard guard({c10::kCUDA, device()});
    CudaStreamLane::record(mark);
  }
  void wait(const Mark& mark) override {
    const c10::DeviceGuard guard({c10::kCUDA, device()});
    CudaStreamLane::wait(mark);
  }
};

c10::DeviceIndex index_of(const c10::Device& device) {
  return device.has_index() ? device.index()
                            : c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice().index();
}

}  // namespace

bool has_cuda_lanes() { return true; }

std::unique_ptr<Lane> make_cuda_lane(const c10::Device& device, LanePriority priority) {
  const c10::DeviceIndex index = index_of(device);
  return std::make_unique<OwnStreamLane>(index, lane_streams(index, priority));
}

std::unique_ptr<Lane> current_cuda_lane(const c10::Device& device) {
  const c10::impl::VirtualGuardImpl streams(c10::kCUDA);
  const c10::Stream stream = streams.getStream({c10::kCUDA, index_of(device)});
  const auto handle = static_cast<cuda::Stream>(streams.getStreamNativeHandle(stream));
  return std::make_unique<CallerLane>(handle, stream);
}

}  // namespace pipert

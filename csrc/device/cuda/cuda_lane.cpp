#include "device/cuda_lane.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include "device/accelerator_lane.h"

namespace pipert {
namespace {

void check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, what, " failed: ", cudaGetErrorString(status));
}

// Owns the stream; all else is the generic lane over a view of it, so that its marks and those of a
// lane over torch's own streams can wait for each other.
class CudaLane final : public Lane {
 public:
  CudaLane(const c10::Device& device, LanePriority priority) : device_(device) {
    const c10::cuda::CUDAGuard guard(device);
    int least = 0;
    int greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                       priority == LanePriority::kTransfer ? greatest : least),
          "cudaStreamCreateWithPriority");
    lane_ =
        make_accelerator_lane(c10::cuda::getStreamFromExternal(stream_, device.index()).unwrap());
  }

  ~CudaLane() override {
    lane_.reset();
    // At interpreter exit the driver may be gone already; there is nobody left to tell.
    if (cudaStreamSynchronize(stream_) == cudaSuccess) (void)cudaStreamDestroy(stream_);
  }

  CudaLane(const CudaLane&) = delete;
  CudaLane& operator=(const CudaLane&) = delete;

  bool is_asynchronous() const override { return true; }
  std::unique_ptr<Mark> make_mark() const override { return lane_->make_mark(); }
  void record(Mark& mark) override { lane_->record(mark); }
  void wait(const Mark& mark) override { lane_->wait(mark); }
  void adopt(const at::Tensor& tensor) override { lane_->adopt(tensor); }
  std::unique_ptr<CurrentLane> make_current() override { return lane_->make_current(); }

 private:
  c10::Device device_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Lane> lane_;
};

}  // namespace

std::unique_ptr<Lane> make_cuda_lane(const c10::Device& device, LanePriority priority) {
  return std::make_unique<CudaLane>(device, priority);
}

}  // namespace pipert

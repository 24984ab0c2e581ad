#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>

#include <memory>
#include <utility>

#include "device/cuda_lane.h"

namespace pipert {
namespace {

// Names memory in torch's allocator. Shared by the graphs that lie there: it ends with the last of
// them, and can't be begun again.
using PoolName = std::shared_ptr<const at::cuda::MempoolId_t>;

// torch warns of graphs without nodes: an action that has nothing to compute makes one.
class Silence final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& /*warning*/) override {}
};

template <typename State>
void stop_recording(State& state) {
  if constexpr (requires { state.capturing_; }) state.capturing_ = false;
}

// Says more of itself, for repairs.
class TorchGraph final : public at::cuda::CUDAGraph {
 public:
  // Whether all that failed, if anything did, was to make something to launch of it.
  bool has_ended() const { return capture_ended_; }

  // In torch 2.11 a generator believes that it is being recorded until it is told. (Nothing else of
  // its state may change: older graphs draw by it.)
  void stop_draws() {
    for (auto& [state, increment] : captured_generator_states_) stop_recording(*state);
  }
};

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(c10::DeviceIndex device, PoolName pool)
      : device_(device), pool_(std::move(pool)), graph_(std::make_unique<TorchGraph>()) {}

  void begin() override {
    try {
      // Other threads of the process may go on as they like.
      graph_->capture_begin(*pool_, cudaStreamCaptureModeThreadLocal);
    } catch (...) {
      abandon();
      throw;
    }
  }

  void end() override {
    try {
      Silence silence;
      const c10::WarningUtils::WarningHandlerGuard guard(&silence);
      graph_->capture_end();
    } catch (...) {
      repair();
      throw;
    }
  }

  void abandon() noexcept override {
    try {
      end();
    } catch (...) {  // a recording that some call has made invalid: end() has put it right
    }
  }

  void launch() override { graph_->replay(); }

 private:
  // capture_end() stopped at its first error, and left the rest undone.
  void repair() noexcept {
    if (!graph_->has_ended()) {
      TorchGraph& broken = *graph_.release();  // to delete it may throw
      broken.stop_draws();
      try {  // or memory that dies there is lost, and nothing can be recorded there again
        c10::cuda::CUDACachingAllocator::endAllocateToPool(device_, *pool_);
        c10::cuda::CUDACachingAllocator::releasePool(device_, *pool_);
      } catch (...) {  // it wasn't begun
      }
      try {
        at::HostAllocator& pinned = *at::getHostAllocator(at::kCUDA);
        pinned.end_allocate_to_pool(*pool_);
        pinned.release_pool(*pool_);
      } catch (...) {  // likewise
      }
    }
    graph_ = nullptr;
    pool_ = nullptr;
  }

  c10::DeviceIndex device_;
  PoolName pool_;
  std::unique_ptr<TorchGraph> graph_;  // null once it broke, and its pool with it
};

class CudaGraphPool final : public GraphPool {
 public:
  explicit CudaGraphPool(c10::DeviceIndex device) : device_(device) {}

  std::unique_ptr<DeviceGraph> make() override {
    PoolName name = name_.lock();
    if (name == nullptr) {
      name = std::make_shared<const at::cuda::MempoolId_t>(at::cuda::graph_pool_handle());
      name_ = name;
    }
    return std::make_unique<CudaGraph>(device_, std::move(name));
  }

 private:
  c10::DeviceIndex device_;
  std::weak_ptr<const at::cuda::MempoolId_t> name_;
};

}  // namespace

std::unique_ptr<GraphPool> make_cuda_graph_pool(const c10::Device& device) {
  return std::make_unique<CudaGraphPool>(device.has_index() ? device.index()
                                                            : c10::cuda::current_device());
}

}  // namespace pipert

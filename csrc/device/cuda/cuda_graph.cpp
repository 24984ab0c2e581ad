#include <ATen/core/Generator.h>
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>

#include <mutex>
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

class CudaGraph final : public DeviceGraph {
 public:
  CudaGraph(c10::DeviceIndex device, PoolName pool)
      : device_(device), pool_(std::move(pool)), graph_(std::make_unique<at::cuda::CUDAGraph>()) {}

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
  // capture_end() stops at its first error, and leaves the rest undone.
  void repair() noexcept {
    // torch's allocator of pinned memory may go on asking a graph whose recording broke.
    static_cast<void>(graph_.release());
    try {
      c10::cuda::CUDACachingAllocator::endAllocateToPool(device_, *pool_);
    } catch (...) {  // it was ended
    }
    try {  // or the generator believes forever that it is being recorded
      at::Generator generator = at::cuda::detail::getDefaultCUDAGenerator(device_);
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.graphsafe_set_state(generator.clone());
    } catch (...) {  // it knows that it isn't
    }
  }

  c10::DeviceIndex device_;
  PoolName pool_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;  // null once it broke
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

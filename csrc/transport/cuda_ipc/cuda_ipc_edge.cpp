#include <c10/cuda/CUDAGuard.h>

#include <utility>

#include "base/error.h"
#include "transport/cuda_ipc/cuda_ipc_receiver.h"
#include "transport/cuda_ipc/cuda_ipc_sender.h"
#include "transport/cuda_ipc_channel.h"

namespace pipert {
namespace {

using SegmentPtr = std::shared_ptr<Segment>;

constexpr char kBetweenNames = ' ';

class Source final : public CudaIpcEdge {
 public:
  explicit Source(const c10::Device& device) : device_(device) {
    const c10::cuda::CUDAGuard guard(device_);
    pusher_ = std::make_unique<Pusher>(board_);
  }
  ~Source() override {
    const c10::cuda::CUDAGuard guard(device_);
    pusher_.reset();
  }

  std::string name() const override { return concat(ring_->name(), kBetweenNames, board_->name()); }
  void remove_name() noexcept override {
    ring_->remove_name();
    board_->remove_name();
  }
  void map_slots() override {
    const c10::cuda::CUDAGuard guard(device_);
    pusher_->open_granted();
  }
  std::unique_ptr<Sender> make_sender(std::chrono::microseconds spin) override {
    if (pusher_ == nullptr) throw ValueError("this edge has its sender already");
    return std::make_unique<CudaIpcSender>(ring_, std::move(pusher_), device_, spin);
  }
  std::unique_ptr<Receiver> make_receiver(std::chrono::microseconds /*spin*/) override {
    throw ValueError("an edge's source sends, it doesn't receive");
  }

 private:
  c10::Device device_;
  SegmentPtr ring_ = make_ring_segment();
  SegmentPtr board_ = make_push_segment();
  std::unique_ptr<Pusher> pusher_;
};

class Destination final : public CudaIpcEdge {
 public:
  Destination(const std::string& name, const c10::Device& device) : name_(name), device_(device) {
    const std::size_t end = name.find(kBetweenNames);
    if (end == std::string::npos)
      throw ValueError(concat("expected the names of two segments, got '", name, "'"));
    ring_ = open_ring_segment(name.substr(0, end));
    const SegmentPtr board = open_push_segment(name.substr(end + 1));
    const c10::cuda::CUDAGuard guard(device_);
    landing_ = std::make_unique<Landing>(board);
  }
  ~Destination() override {
    const c10::cuda::CUDAGuard guard(device_);
    landing_.reset();
  }

  std::string name() const override { return name_; }
  void remove_name() noexcept override {}
  void map_slots() override {}  // they are its own
  std::unique_ptr<Sender> make_sender(std::chrono::microseconds /*spin*/) override {
    throw ValueError("an edge's destination receives, it doesn't send");
  }
  std::unique_ptr<Receiver> make_receiver(std::chrono::microseconds spin) override {
    if (landing_ == nullptr) throw ValueError("this edge has its receiver already");
    return std::make_unique<CudaIpcReceiver>(ring_, std::move(landing_), device_, spin);
  }

 private:
  std::string name_;
  c10::Device device_;
  SegmentPtr ring_;
  std::unique_ptr<Landing> landing_;
};

}  // namespace

bool has_cuda_ipc() { return true; }

std::shared_ptr<CudaIpcEdge> make_cuda_ipc_source(const c10::Device& device) {
  return std::make_shared<Source>(device);
}

std::shared_ptr<CudaIpcEdge> open_cuda_ipc_destination(const std::string& name,
                                                       const c10::Device& device) {
  return std::make_shared<Destination>(name, device);
}

}  // namespace pipert

// The end of a cuda_ipc channel that receives.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "ipc/landing.h"
#include "shm/ring_reader.h"
#include "transport/channel.h"
#include "transport/cuda_ipc/announcement.h"
#include "transport/frame_buffers.h"

namespace pipert {

class CudaIpcReceiver final : public Receiver {
 public:
  CudaIpcReceiver(std::shared_ptr<Segment> ring, std::unique_ptr<Landing> landing,
                  const c10::Device& device, std::chrono::microseconds spin);
  ~CudaIpcReceiver() override;

  void begin(const ChannelPass& pass) override;
  void post(int /*sequence*/, int /*slot*/) override {}
  std::optional<Message> take(int sequence, int slot, Lane& lane) override;
  void abort() noexcept override;
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "cuda_ipc"; }

 private:
  std::optional<Message> receive(cuda::Stream stream);
  // The ring's next message: uint8, one-dimensional, on the CPU. Undefined if aborted.
  at::Tensor next();
  // False if aborted.
  bool fill(const std::vector<at::Tensor>& tensors, const Announcement& announcement,
            const at::Tensor& bytes, cuda::Stream stream);
  void copy_behind_frame(const std::vector<Landing::Part>& parts, const Announcement& announcement,
                         const at::Tensor& bytes, cuda::Stream stream);

  c10::Device device_;
  RingReader ring_;
  std::unique_ptr<Landing> landing_;
  FrameBuffers buffers_;
  std::atomic<bool> is_aborted_{false};
  int next_sequence_ = 0;         // in this pass
  std::map<int, Message> early_;  // by sequence
};

}  // namespace pipert

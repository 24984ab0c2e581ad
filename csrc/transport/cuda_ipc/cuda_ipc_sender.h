// The end of a cuda_ipc channel that sends.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "ipc/pusher.h"
#include "shm/courier.h"
#include "transport/channel.h"
#include "transport/cuda_ipc/announcement.h"
#include "transport/frame.h"

namespace pipert {

class CudaIpcSender final : public Sender {
 public:
  CudaIpcSender(std::shared_ptr<Segment> ring, std::unique_ptr<Pusher> pusher,
                const c10::Device& device, std::chrono::microseconds spin);
  ~CudaIpcSender() override;

  void begin(const ChannelPass& pass) override;
  void send(int sequence, int slot, Message message, Lane& lane) override;
  bool release(int sequence, int slot) override;
  void abort() noexcept override;
  bool reset() noexcept override { return false; }
  std::string_view kind() const override { return "cuda_ipc"; }

 private:
  // Gives the tensors beside the frame their way.
  Announcement announce(const FrameWriter& frame, int slot, cuda::Stream producer);
  // Writes the ring's message; waits for `producer` if bytes come behind the frame.
  static void write(char* destination, const Announcement& announcement, const FrameWriter& frame,
                    cuda::Stream producer);
  void check_devices(const FrameWriter& frame) const;

  c10::Device device_;
  RingWriter ring_;
  Courier courier_{ring_};
  std::unique_ptr<Pusher> pusher_;
  std::vector<std::unique_ptr<Lane>> pushes_;  // the pusher's streams, for the allocator
  std::uint64_t num_sent_ = 0;
  std::map<int, std::uint64_t> sent_from_;  // by slot: the number of its last message, from 1
};

}  // namespace pipert

// What lanes of CUDA devices are made of: raw streams and events, made once and used again.
//
// Note [Streams and events outlive lanes]
//
// They come from pools, one of each kind for each device, that live as long as the process. A mark
// travels with its message and dies on the receiver's thread, so making and destroying an event for
// each message would be the dearest call of a transfer. And a stream may not be destroyed at all
// while the caching allocator knows it: it asks the streams that a block was adopted by when the
// block is freed, which for a tensor that the user keeps may be after the pipeline. A stream that
// comes back is given to the next pipeline's lanes, which then find the blocks that it had.
//
// An event may be recorded anew as soon as all lanes that were to wait for it have been told to:
// a stream waits for what the event stood for at the time of the call. The same holds if it was
// recorded while a stream was captured into a graph: the graph has an edge, not the event.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "cuda/cuda_api.h"
#include "device/handle_pool.h"
#include "device/lane.h"

namespace pipert {

HandlePool& ordering_events(c10::DeviceIndex device);
HandlePool& lane_streams(c10::DeviceIndex device, LanePriority priority);

// A mark of any lane of a CUDA device.
class CudaMark final : public Mark {
 public:
  explicit CudaMark(c10::DeviceIndex device)
      : pool_(ordering_events(device)), event_(static_cast<cuda::Event>(pool_.take())) {}
  ~CudaMark() override { pool_.give_back(event_); }
  CudaMark(const CudaMark&) = delete;
  CudaMark& operator=(const CudaMark&) = delete;

  void record(cuda::Stream stream);
  void block(cuda::Stream stream) const;

 private:
  HandlePool& pool_;
  cuda::Event event_;
  bool is_recorded_ = false;
};

// A lane over a stream; has no part in who owns that.
class CudaStreamLane : public Lane {
 public:
  // Twice the same one.
  CudaStreamLane(cuda::Stream stream, const c10::Stream& torch_stream)
      : stream_(stream), torch_stream_(torch_stream) {}

  bool is_asynchronous() const final { return true; }
  std::unique_ptr<Mark> make_mark() const final { return std::make_unique<CudaMark>(device()); }
  void record(Mark& mark) override { static_cast<CudaMark&>(mark).record(stream_); }
  void wait(const Mark& mark) override { static_cast<const CudaMark&>(mark).block(stream_); }
  void adopt(const at::Tensor& tensor) final;
  std::unique_ptr<CurrentLane> make_current() final;

  cuda::Stream stream() const { return stream_; }

 protected:
  c10::DeviceIndex device() const { return torch_stream_.device_index(); }

 private:
  cuda::Stream stream_;
  c10::Stream torch_stream_;
};

}  // namespace pipert

// Landing: the end of an edge between GPU processes that receives: slots of device memory that the
// other process pushes into.
//
// Note [What copying out costs]
//
// What has arrived is copied out of its slot at once, into memory of the receiver's own allocator:
// one copy within the device for each message, on the receive lane, at the full bandwidth of its
// memory (64 MB in 35 us on an H200). So a slot is free again as soon as its message could be read,
// whatever the stage keeps of it and for how long, and tensors are of the usual kind.
//
// They could lie in the slot itself, which would be free when the last of them has died, as what
// csrc/shm lends. Not here:
// - Only the caching allocator notes which streams use a tensor. Of memory that isn't its own a
//   record_stream() is lost, and the next push would overwrite what another stream still reads.
// - A tensor dies on the host, on any thread, maybe while a graph is captured or after the channel,
//   when the lanes that read it may not have come to that: the slot's word would have to be written
//   behind each of them, from a destructor.
// - A stage keeps its input until the backward. So an edge would hold a slot as large as its
//   largest message for every microbatch in flight, for good, which the allocator can't use
//   otherwise.
// It would save a copy that takes a quarter of the push that it follows (64 MB over 450 GB/s of
// NVLink: 149 us), and that holds up nobody but who waits for that message.
//
// Used by one thread, with the device of the edge as its current one, save abort().
#pragma once

#include <deque>
#include <vector>

#include "cuda/cuda_event.h"
#include "cuda/device_memory.h"
#include "cuda/registered_memory.h"
#include "ipc/wait_ender.h"

namespace pipert {

class Landing {
 public:
  struct Part {
    void* data = nullptr;  // device memory
    std::size_t num_bytes = 0;
  };

  // `segment`: from open_push_segment(). Grants a few small slots. CudaError, SegmentError.
  explicit Landing(std::shared_ptr<Segment> segment);
  // Its slots are freed when the other end has closed them, or is gone: now, or when another
  // Landing of this process comes or goes.
  ~Landing();
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;

  // Grants slots for messages like one that found no room. CudaError if there is no memory.
  void grow(std::uint32_t num_slots, std::size_t slot_bytes);
  // Gives `stream` a wait for the push and the copies of its parts; the slot is free behind them.
  // False, and nothing is given, after an abort, or when the other end is gone. ValueError for a
  // push that can't be. REQUIRES the same stream each time, and pushes in the order of their
  // numbers.
  bool take(const Pushed& pushed, const std::vector<Part>& parts, cuda::Stream stream);

  void abort() noexcept { waits_.end_waits(); }

 private:
  struct Area {
    DeviceMemory memory;
    std::uint32_t grant = 0;
    std::size_t slot_bytes = 0;
    std::uint32_t num_slots = 0;
  };
  struct Closing;  // areas that the other process may still have mapped

  const Area& area_of(const Pushed& pushed, const std::vector<Part>& parts) const;
  void free_closed();
  static void sweep(std::unique_ptr<Closing> closing);

  std::shared_ptr<Segment> segment_;  // shared: areas that are kept keep it
  PushBoard& board_;
  std::unique_ptr<RegisteredMemory> words_;
  CudaEvent taken_;  // behind the last copy
  std::deque<Area> areas_;
  WaitEnder waits_;
};

}  // namespace pipert

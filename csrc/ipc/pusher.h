// Pusher: the end of an edge between GPU processes that sends. Copy engines push from this
// process's device memory into the receiver's, on a stream of its own.
//
// Used by one thread, with the device of the edge as its current one, save abort().
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "cuda/cuda_event.h"
#include "cuda/cuda_stream.h"
#include "cuda/imported_memory.h"
#include "cuda/registered_memory.h"
#include "ipc/wait_ender.h"

namespace pipert {

class Pusher {
 public:
  struct Part {
    const void* data = nullptr;  // device memory
    std::size_t num_bytes = 0;
  };

  // `segment`: from make_push_segment(). CudaError, SegmentError.
  explicit Pusher(std::shared_ptr<Segment> segment);
  // Waits until its pushes are done, or nobody needs them any more; then the receiver may free its
  // memory.
  ~Pusher();
  Pusher(const Pusher&) = delete;
  Pusher& operator=(const Pusher&) = delete;

  // Maps what the receiver has granted last, if that isn't mapped. CudaError if it can't be.
  void open_granted();
  // Gives the push of all parts into `slot` to the stream, behind all that `producer` was given.
  // Nothing, and nothing is given, if the slots are too small or too few, after an abort,
  // or when the receiver is gone.
  // REQUIRES that the receiver has taken what was last pushed into the slot, and that the parts
  // stay as they are until stream() has passed.
  std::optional<Pushed> push(std::uint32_t slot, const std::vector<Part>& parts,
                             cuda::Stream producer);
  cuda::Stream stream() const { return stream_.get(); }

  void abort() noexcept { waits_.end_waits(); }
  bool is_aborted() const { return waits_.has_ended(); }

 private:
  // Slots that were granted.
  struct Target {
    ImportedMemory memory;
    std::uint32_t grant = 0;
    std::size_t slot_bytes = 0;
    std::uint32_t num_slots = 0;
    std::map<std::uint32_t, std::uint32_t> last;  // by slot: the number of its last push
    std::uint32_t last_number = 0;
  };

  void close_retired();

  std::shared_ptr<Segment> segment_;  // shared: other objects use other parts of it, or keep it
  PushBoard& board_;
  RegisteredMemory words_;
  CudaStream stream_;
  CudaEvent produced_;
  std::uint32_t number_;
  std::optional<Target> target_;
  std::deque<Target> retired_;  // pushes into them may still run
  WaitEnder waits_;
};

}  // namespace pipert

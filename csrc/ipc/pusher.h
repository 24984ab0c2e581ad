// Pusher: the end of an edge between GPU processes that sends. Copy engines push from this
// process's device memory into the receiver's, on streams of its own.
//
// Note [Pushes by turns]
//
// Around its copy each push has its stream wait for the producer, and write the word that tells of
// it; on one stream the next copy stands behind that, some 8 us of doing nothing for 9 us of
// copying 16 MB (H200). So pushes go to several streams by turns: one copies while another waits or
// tells. Each has a word of its own, since what one tells mustn't say that the other has arrived.
// Nor is a push whose slot isn't free yet in the way of the next one. Two are enough from some 8 us
// of copy on; they share the bandwidth where both copy, and more would take more of the device's
// queues, of which a process has 8 unless CUDA_DEVICE_MAX_CONNECTIONS says otherwise.
//
// Used by one thread, with the device of the edge as its current one, save abort().
#pragma once

#include <chrono>
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
  static constexpr std::uint32_t kNumStreams = 2;

  // `segment`: from make_push_segment(). At most kMaxPushStreams. CudaError, SegmentError.
  explicit Pusher(std::shared_ptr<Segment> segment, std::uint32_t num_streams = kNumStreams);
  // Waits until its pushes are done, or nobody needs them any more; then the receiver may free its
  // memory.
  ~Pusher();
  Pusher(const Pusher&) = delete;
  Pusher& operator=(const Pusher&) = delete;

  // Maps what the receiver has granted last, if that isn't mapped, and unmaps what no push uses any
  // more: that waits for all of the device's streams. CudaError if it can't be mapped.
  void open_granted();
  // Gives the push of all parts into `slot` to a stream, behind all that `producer` was given.
  // Nothing, and nothing is given, if the slots are too small or too few, after an abort,
  // or when the receiver is gone.
  // REQUIRES that the receiver has taken what was last pushed into the slot, and that the parts
  // stay as they are until stream() of what is returned has passed.
  std::optional<Pushed> push(std::uint32_t slot, const std::vector<Part>& parts,
                             cuda::Stream producer);
  cuda::Stream stream(std::uint32_t index) const { return streams_.at(index).get(); }
  std::uint32_t num_streams() const { return static_cast<std::uint32_t>(streams_.size()); }

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

  void note_freed();
  // Makes `stream` wait until the slot is free, unless it is. False if it never will be.
  bool await_free(std::uint32_t slot, cuda::Stream stream);
  bool drain(std::chrono::milliseconds patience) const noexcept;

  std::shared_ptr<Segment> segment_;  // shared: other objects use other parts of it, or keep it
  PushBoard& board_;
  RegisteredMemory words_;
  std::deque<CudaStream> streams_;  // whose elements stay where they are
  std::uint32_t last_stream_ = 0;
  CudaEvent produced_;
  std::uint32_t number_;
  std::optional<Target> target_;
  std::deque<Target> retired_;  // pushes into them may still run
  WaitEnder waits_;
};

}  // namespace pipert

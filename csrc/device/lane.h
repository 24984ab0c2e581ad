// Lane: an ordered queue of work on one rank. Mark: a point on a lane that another lane can wait
// for.
//
// On an accelerator a lane is a stream and a mark an event. On the CPU work is done when the call
// returns, so the lane of the CPU does nothing. A lane belongs to one rank and is used by that
// rank's thread alone; a mark may be waited for from any thread once it has been recorded.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>

namespace pipert {

class Mark {
 public:
  virtual ~Mark() = default;
};

// While it lives, work that this thread gives to torch lands on the lane.
class CurrentLane {
 public:
  virtual ~CurrentLane() = default;
};

enum class LanePriority : std::uint8_t { kCompute, kTransfer };

class Lane {
 public:
  virtual ~Lane() = default;

  // False on the CPU: then marks, adoption and currency all are no-ops and may be skipped.
  virtual bool is_asynchronous() const = 0;
  virtual std::unique_ptr<Mark> make_mark() const = 0;
  // Sets the mark behind everything that the lane was given so far.
  virtual void record(Mark& mark) = 0;
  // Everything that the lane is given from now on comes after the mark. REQUIRES that it has been
  // recorded: a wait for an event that never was is silently lost.
  virtual void wait(const Mark& mark) = 0;
  // Tells the allocator that this lane uses a tensor that another lane allocated.
  virtual void adopt(const at::Tensor& tensor) = 0;
  virtual std::unique_ptr<CurrentLane> make_current() = 0;
};

// A new lane of `device`, owned by the caller.
std::unique_ptr<Lane> make_lane(const c10::Device& device, LanePriority priority);

// The queue that this thread's work on `device` lands on now: the caller's own stream.
std::unique_ptr<Lane> current_lane(const c10::Device& device);

}  // namespace pipert

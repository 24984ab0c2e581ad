// Pushes and flags between two processes by themselves, timed: for benchmarks alone.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace pipert {

// One end of an edge between GPU processes. Its source times; what it is to time, its destination
// has been given by then. Each method acts on the thread's current device; CudaError, SegmentError.
class PushProbe {
 public:
  virtual ~PushProbe() = default;
  // By which the destination opens it.
  virtual std::string name() const = 0;
  // For pushes of so many bytes: first the destination, then the source.
  virtual void prepare(std::size_t num_bytes) = 0;

  // By the destination: gives its stream the answers to so many pushes, or flags.
  virtual void answer_pushes(int count) = 0;
  virtual void answer_flags(int count) = 0;
  // By the destination: until its stream has passed.
  virtual void finish() = 0;

  // By the source: seconds of so many pushes behind each other, of as many copies within the device
  // into `num_destinations` by turns, of as many flags there and back.
  virtual double time_pushes(int count) = 0;
  virtual double time_copies(int count, int num_destinations) = 0;
  virtual double time_flags(int count) = 0;
};

// ValueError in a build without CUDA (cuda_ipc_none.cpp).
std::shared_ptr<PushProbe> make_push_probe();
std::shared_ptr<PushProbe> open_push_probe(const std::string& name);

}  // namespace pipert

// Pushes and flags between two processes by themselves, timed: for benchmarks alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pipert {

// One end of an edge between GPU processes. Its source times; what it is to time, its destination
// has been given by then. Each method acts on the thread's current device; CudaError, SegmentError.
class PushProbe {
 public:
  struct Timed {
    double seconds = 0;        // of the device
    double issue_seconds = 0;  // of the host before, which gave it to the streams
  };

  virtual ~PushProbe() = default;
  // By which the destination opens it.
  virtual std::string name() const = 0;
  // For pushes of so many bytes: first the destination, then the source. REQUIRES that the streams
  // of both have passed.
  virtual void prepare(std::size_t num_bytes) = 0;

  // By the destination: gives its stream the answers to so many pushes; without copies out of the
  // slots, which take a share of the memory's bandwidth, they are those of a receiver alone.
  virtual void answer_pushes(int count, bool copies_out) = 0;
  // To hops there, back again, before each a copy of so many bytes within the device; 0: none.
  // REQUIRES prepare() for at least as many.
  virtual void answer_hops(int count, std::size_t num_bytes) = 0;
  // By the destination: until its stream has passed.
  virtual void finish() = 0;

  // By the source, of so many behind each other: pushes; copies into the same slots, that nobody is
  // told of; copies within the device into `num_destinations` by turns; hops there and back.
  virtual Timed time_pushes(int count) = 0;
  virtual Timed time_bare_pushes(int count) = 0;
  virtual Timed time_copies(int count, int num_destinations) = 0;
  virtual Timed time_hops(int count, std::size_t num_bytes) = 0;
};

// `num_streams`: that push. ValueError in a build without CUDA (cuda_ipc_none.cpp).
std::shared_ptr<PushProbe> make_push_probe(std::uint32_t num_streams);
std::shared_ptr<PushProbe> open_push_probe(const std::string& name);

}  // namespace pipert

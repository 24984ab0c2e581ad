// MemoryMeter: how many bytes one rank's tensors take on its device, since the pass began.
//
// torch's allocators report each allocation to whoever profiles the thread that makes it (and
// autograd threads report on behalf of the thread that runs backward); a meter puts itself in that
// place. A process-wide ledger knows whose each piece of memory is, so that what another rank frees
// is taken off the right count.
//
// Owned by a rank; reset by the caller's thread while no rank runs, else used by the rank's thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace pipert {

class MemoryMeter {
 public:
  explicit MemoryMeter(const c10::Device& device);
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  // From here on what is there already counts as nothing.
  void reset();

  // While it lives, what this thread allocates counts.
  class Measuring {
   public:
    virtual ~Measuring() = default;
  };
  // Null if a profiler has the place: then nothing is measured.
  std::unique_ptr<Measuring> start();

  std::int64_t bytes() const;  // now
  std::int64_t peak() const;   // since reset()

  // The tensors leave for another rank: until it takes them they are nobody's. One whose memory
  // this rank holds on to stays this rank's.
  void give(const std::vector<at::Tensor>& tensors);
  // From another rank.
  void take(const std::vector<at::Tensor>& tensors);

  // Takes the tensor off the count of the meter that measures this thread, if any does.
  static void forget(const at::Tensor& tensor);

 private:
  class Counter;
  std::shared_ptr<Counter> counter_;  // shared with threads that report on this one's behalf
};

}  // namespace pipert

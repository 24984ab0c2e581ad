// PassLog: what a rank notes while it runs a pass: when its instructions began and ended, on the
// host and on the device, the bytes that it held and sent, and how many activations; and what a
// profiler is told.
//
// Owned by an Executor. Written by the rank's thread, but for what is said to be the caller's.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/device_times.h"
#include "device/memory_meter.h"
#include "device/profiler_range.h"
#include "plan/program.h"
#include "runtime/trace.h"

namespace pipert {

class PassLog {
 public:
  PassLog(const TraceOptions& options, const Program& training, const Program& evaluation,
          const c10::Device& device);

  // --- the caller's, while no pass runs

  // From the next pass on, bytes are counted.
  void measure_memory() { meter_.emplace(device_); }
  void begin(bool training, std::int64_t begun_ns);
  // The pass ended well, on all ranks.
  void end(std::int64_t ended_ns) { trace_.end(ended_ns); }

  const TraceRing& trace() const { return trace_; }
  // Whether spans() has anything.
  bool times_device() const { return device_times_ != nullptr; }
  // Of the pass `ago` before the last one, by instruction. Waits until the device has come to its
  // end. REQUIRES times_device().
  std::vector<DeviceSpan> spans(int ago) const {
    return device_times_->read(trace_.place_of_last(ago));
  }
  const MemoryTrace& memory() const { return memory_; }
  // The most activations at a time in the last pass.
  int peak_activations() const { return peak_activations_.load(std::memory_order_relaxed); }

  // --- the rank's, in this order

  void enter();
  void come_to_instruction();
  // It has what it waited for.
  void start() { started_ns_ = clock_ns(); }
  void leave_instruction() { note(clock_ns()); }
  // Instead: two instructions that ran jointly, of which the first took `first_ns` and the second
  // `second_ns`. They stand in the trace one after the other, as long as both together.
  void leave_pair(std::int64_t first_ns, std::int64_t second_ns);
  // There are no more of them.
  void stop_clock();
  void leave();

  // --- in between

  // The clock, or 0 where nothing is traced.
  std::int64_t clock_ns() { return trace_.current() != nullptr ? now_ns() : 0; }
  void send(const std::vector<at::Tensor>& tensors);
  void take(const std::vector<at::Tensor>& tensors);
  // Of the device, by DeviceTimes.
  void start_on_device(std::size_t instruction, Lane& lane) {
    if (device_times_ != nullptr) device_times_->start(instruction, lane);
  }
  void end_on_device(std::size_t instruction, Lane& lane) {
    if (device_times_ != nullptr) device_times_->end(instruction, lane);
  }
  // The action's name for a profiler; null where none is asked for.
  const char* range_name(std::size_t instruction) const;
  // Any thread that runs half of a pair.
  void count_activations(int change);
  // That are held now; -1 where they are not measured.
  std::int64_t held_bytes() const { return memory_.bytes.empty() ? -1 : meter_->bytes(); }

 private:
  void note(std::int64_t ended_ns);

  c10::Device device_;
  TraceRing trace_;
  std::unique_ptr<DeviceTimes> device_times_;  // null: none are taken
  // By instruction, "rank 1 2F0" (see docs/trace.md); empty: no profiler is told.
  std::vector<std::string> training_ranges_;
  std::vector<std::string> evaluation_ranges_;
  MemoryTrace memory_;
  std::optional<MemoryMeter> meter_;
  std::unique_ptr<MemoryMeter::Measuring> measuring_;
  bool is_training_ = true;
  // Of the instruction at hand.
  std::int64_t issued_ns_ = 0;
  std::int64_t started_ns_ = 0;  // 0: it never waited
  std::int64_t sent_bytes_ = 0;
  std::atomic<int> num_activations_{0};
  std::atomic<int> peak_activations_{0};
};

}  // namespace pipert

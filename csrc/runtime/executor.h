// Executor: runs one rank's Program. It knows instructions, lanes and channels, and no schedule by
// name.
//
// Used by the thread of its rank, which must not hold the GIL: a stage takes it if its code needs
// it.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/device_times.h"
#include "device/memory_meter.h"
#include "runtime/arrival.h"
#include "runtime/core_spread.h"
#include "runtime/decode.h"
#include "runtime/failure.h"
#include "runtime/losses.h"
#include "runtime/progress.h"
#include "runtime/trace.h"

namespace pipert {

class Executor {
 public:
  // `training` and `evaluation` are Programs of this rank. `failure` and `spread` are shared by all
  // ranks of the process; `seat` is this rank's place among them.
  Executor(RankResources resources, Program training, Program evaluation, const c10::Device& device,
           FirstFailure& failure, CoreSpread& spread, int seat, const TraceOptions& trace);

  // From the next pass on, bytes are counted. While no pass runs.
  void measure_memory() { meter_.emplace(device_); }

  // Tells the channels and the trace that a pass begins. On the caller's thread; no rank is
  // running. On an accelerator the pass comes after all that the caller's stream was given before.
  // `begun_ns`: when the caller began it.
  void prepare(const Pass& pass, std::int64_t begun_ns);
  // After the pass, on the caller's thread: what its stream is given from now on comes after the
  // pass.
  void join();
  // Likewise after a pass that failed, of all that any lane was given.
  void join_all() noexcept;

  // Runs the pass, and `after` on the compute lane at its end. False if either ended early, with
  // the reason in the FirstFailure: this rank's own, or another's.
  bool run(const Pass& pass, const std::function<bool(Lane&)>& after = nullptr);

  // Any thread: ends this rank's waits, now and until reset().
  void abort() noexcept;
  // On the caller's thread: the pass ended well, on all ranks.
  void complete(std::int64_t ended_ns) { trace_.end(ended_ns); }
  // After a failed pass, when no rank is running. False if the channels must be built anew.
  bool reset() noexcept;

  Rank rank() const { return training_.program.rank; }
  const Program& program(bool training) const {
    return training ? training_.program : evaluation_.program;
  }
  const Progress& progress() const { return progress_; }
  const TraceRing& trace() const { return trace_; }
  // Whether traced() has the device's times.
  bool times_device() const { return device_times_ != nullptr; }
  // TraceRing::last(ago), between passes. With the device's times it waits until the device has
  // come to the end of that pass.
  PassTrace traced(int ago) const;
  const MemoryTrace& memory() const { return memory_; }
  const RankResources& resources() const { return resources_; }
  const c10::Device& device() const { return device_; }
  // What this rank's last stages computed in the last pass; empty if there is none.
  Losses losses() const;
  // The most (stage, microbatch) pairs that held activations at a time in the last pass, counted in
  // the stages.
  int peak_activations() const { return peak_activations_.load(std::memory_order_relaxed); }
  // Whether the last pass that began was a training pass.
  bool last_was_training() const { return last_was_training_; }

 private:
  const DecodedProgram& decoded(const Pass& pass) const {
    return pass.training ? training_ : evaluation_;
  }
  RunContext context_of(const Op& op, const Pass& pass) const;
  // Sets the mark behind the pass. False, with the reason, if the device refuses.
  bool mark_exit(const Pass& pass);
  bool dispatch(const Op& op, const Pass& pass);
  bool run_stage(const Op& op, const Pass& pass);
  bool run_pair(const Op& forward, const Op& backward, const Pass& pass);
  // Runs it, and counts what activations there are.
  Message run_action(const Op& op, const Pass& pass, Message input);
  static Message run_on_stage(const Op& op, const RunContext& context, Message input);
  bool fetch(const Input& input, const Pass& pass, Message& message);
  // Throws ValueError unless the message is the one that `input` is to bring in this pass.
  void check(const Message& message, const Input& input, const Pass& pass) const;
  bool move(const Op& op, const Pass& pass);
  void send(const Op& op, const Pass& pass);
  bool release(const Op& op);
  // For moves, on an accelerator: elsewhere work is done when the call returns.
  void await_mark(const Op& op, Lane& lane);
  void set_mark(const Op& op, Lane& lane);
  void count_activations(int change);
  // The action's name for a profiler; null where none is asked for.
  const char* range_name(const Op& op, const Pass& pass) const;
  std::size_t index_of(const Op& op, const Pass& pass) const {
    return static_cast<std::size_t>(&op - decoded(pass).ops.data());
  }
  HeldMemory held_memory(const Pass& pass) const;
  // The instruction at hand has what it waited for.
  void start();
  // The clock, or 0 where nothing is traced.
  std::int64_t trace_ns() { return trace_.current() != nullptr ? now_ns() : 0; }
  void fail(const Pass& pass, std::exception_ptr cause);

  RankResources resources_;
  LaneTable lanes_;
  Lane& compute_lane_;
  DecodedProgram training_;
  DecodedProgram evaluation_;
  c10::Device device_;
  FirstFailure& failure_;
  CoreSpread& spread_;
  int seat_;
  // Null on the CPU, and before the first pass.
  std::unique_ptr<Mark> entry_;    // on the caller's stream before the pass
  std::unique_ptr<Mark> fetched_;  // on the lane of the message that was read last
  std::unique_ptr<Mark> exit_;     // on the compute lane after the pass
  std::vector<Message> held_;      // by SlotId: results on their way to a Send or to a later Run
  std::vector<std::unique_ptr<Mark>> marks_;  // by MarkId: those of moves, once they were set
  Progress progress_;
  TraceRing trace_;
  std::unique_ptr<DeviceTimes> device_times_;  // null: none are taken
  // By instruction, "rank 1 2F0" (see docs/trace.md); empty: no profiler is told.
  std::vector<std::string> training_ranges_;
  std::vector<std::string> evaluation_ranges_;
  MemoryTrace memory_;
  std::optional<MemoryMeter> meter_;
  // Of the instruction at hand, in the trace: when it had what it waited for (0: it never waited),
  // and the bytes that it sent.
  std::int64_t started_ns_ = 0;
  std::int64_t sent_bytes_ = 0;
  bool has_input_ = false;           // the Run or Move at hand has what it reads
  std::array<Arrival, 2> arrivals_;  // that it reads; both halves of a pair
  bool last_was_training_ = true;
  std::int64_t middle_ns_ = 0;     // of the joint pair at hand: where its forward ends in the trace
  std::optional<Action> failing_;  // what failed, where it isn't the Run at hand
  // Halves of a pair may run on other threads.
  std::atomic<int> num_activations_{0};
  std::atomic<int> peak_activations_{0};
};

}  // namespace pipert

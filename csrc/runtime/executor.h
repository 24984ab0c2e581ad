// Executor: runs one rank's Program. It knows instructions, lanes and channels, and no schedule by
// name.
//
// Used by the thread of its rank, which must not hold the GIL: a stage takes it if its code needs
// it.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/arrival.h"
#include "runtime/core_spread.h"
#include "runtime/decode.h"
#include "runtime/failure.h"
#include "runtime/losses.h"
#include "runtime/pass_log.h"
#include "runtime/progress.h"
#include "runtime/value_exchange.h"

namespace pipert {

class Executor {
 public:
  // `training` and `evaluation` are Programs of this rank. `failure` and `spread` are shared by all
  // ranks of the process; `seat` is this rank's place among them.
  Executor(RankResources resources, Program training, Program evaluation, const c10::Device& device,
           FirstFailure& failure, CoreSpread& spread, int seat, const TraceOptions& trace);

  // From the next pass on, bytes are counted. While no pass runs.
  void measure_memory() { log_.measure_memory(); }

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
  void complete(std::int64_t ended_ns) { log_.end(ended_ns); }
  // After a failed pass, when no rank is running. False if the channels must be built anew.
  bool reset() noexcept;

  Rank rank() const { return training_.program.rank; }
  const Program& program(bool training) const {
    return training ? training_.program : evaluation_.program;
  }
  const Progress& progress() const { return progress_; }
  // What the rank noted of its last passes. The activations are counted in the stages: (stage,
  // microbatch) pairs that held some.
  const PassLog& log() const { return log_; }
  // TraceRing::last(ago), between passes. With the device's times it waits until the device has
  // come to the end of that pass.
  PassTrace traced(int ago) const;
  const RankResources& resources() const { return resources_; }
  const c10::Device& device() const { return device_; }
  // What this rank's last stages computed in the last pass; empty if there is none.
  Losses losses() const;
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
  // What the Run reads, as its stage is given it. False where a wait for it was ended.
  bool fetch_all(const Op& op, const Pass& pass, Arrival& arrival, Message& given);
  // Runs it, and puts the result where it goes.
  void run_given(const Op& op, const Pass& pass, Message given);
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
  std::size_t index_of(const Op& op, const Pass& pass) const {
    return static_cast<std::size_t>(&op - decoded(pass).ops.data());
  }
  HeldMemory held_memory(const Pass& pass) const;
  // The instruction at hand has what it waited for.
  void start();
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
  ValueExchange values_;
  std::vector<std::unique_ptr<Mark>> marks_;  // by MarkId: those of moves, once they were set
  Progress progress_;
  PassLog log_;
  bool has_input_ = false;           // the Run or Move at hand has what it reads
  std::array<Arrival, 2> arrivals_;  // that it reads; both halves of a pair
  bool last_was_training_ = true;
  std::optional<Action> failing_;  // what failed, where it isn't the Run at hand
};

}  // namespace pipert

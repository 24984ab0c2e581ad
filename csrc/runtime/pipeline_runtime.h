// PipelineRuntime: the ranks of this process, each on a thread of its own, and the caller who
// watches them.
//
// Driven by one thread at a time, the caller's: start(), then watch() until it says that the pass
// is over, then finish(). The caller keeps watching so that Ctrl-C, time limits and the failures of
// other processes are noticed while every rank is inside somebody else's code.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/connections.h"
#include "runtime/core_spread.h"
#include "runtime/executor.h"
#include "runtime/workers.h"

namespace pipert {

struct RandomOptions {
  std::optional<std::uint64_t> seed;  // of all streams; nothing: each pass draws one
  std::int64_t owner = 0;             // whose layers the ranks listen to (see LayerPlaces)
};

struct RuntimeOptions {
  std::chrono::milliseconds timeout{300'000};  // for every wait of one rank for another
  int intra_op_threads = 1;                    // of each rank
  bool measure_memory = false;                 // of each rank: MemoryTrace's bytes
  TraceOptions trace;                          // of each rank
  WorkerHooks hooks;
  RandomOptions random;
};

// What this process has that others have too.
struct SharedState {
  std::vector<SharedStage> stages;  // whose other copy is elsewhere
  std::vector<TiedWeight> weights;  // that stages elsewhere use as well
};

class PipelineRuntime {
 public:
  // How long a failure may take to reach the other processes, or theirs to reach this one, before
  // this one goes on without.
  static constexpr std::chrono::milliseconds kStorePatience{2000};

  // What `external` has beside channels is null when all ranks are in this process.
  PipelineRuntime(std::vector<RankSpec> ranks, ExternalChannels external, RuntimeOptions options);
  ~PipelineRuntime();

  // `begun_ns`: when the caller began the pass.
  void start(Pass pass, std::int64_t begun_ns, SharedState shared = {});
  // Instead of a pass: second copies take over the weights and buffers of the first, and all who
  // use a parameter its owner's values.
  void start_sharing(std::int64_t epoch, SharedState shared);
  // Behind a pass, whose gradients were changed since: all who use a parameter take over its
  // owner's gradient.
  void start_sharing_gradients(std::int64_t epoch, std::vector<TiedWeight> weights);
  // Waits for at most `limit`; true when no rank runs any more.
  bool watch(std::chrono::milliseconds limit);
  // Ends the pass at the next instruction of each rank. Any thread.
  void interrupt(Failure failure);
  // The pass's failure, if it had one; the pipeline is then ready for another pass, or usable() is
  // false.
  std::optional<Failure> finish();
  bool usable() const { return usable_; }
  // This process won't come to the pass that the others may be in: tells them why.
  void withdraw(const std::string& text) noexcept {
    usable_ = agreement_ == nullptr;
    publish(text);
  }
  bool has_peers() const { return board_ != nullptr; }
  // Tells the other processes why this one failed; nothing when there are none.
  void publish(const std::string& text) noexcept {
    if (board_ != nullptr) board_->publish(text, kStorePatience);
  }

  const std::vector<std::unique_ptr<Executor>>& executors() const { return executors_; }
  // Of the last pass, as far as the last stages are here or have told. Empty where none is.
  Losses losses() const;
  // What the last stage's rank gave to the agreement: the dtype of the losses of the last pass (a
  // c10::ScalarType), their weights, and they themselves, by microbatch. Empty where losses are not
  // shared.
  const std::vector<double>& agreed() const { return agreed_; }
  void set_share_losses(bool share) { share_losses_ = share; }

 private:
  void begin_exchanges(ExchangeKind kind, std::int64_t epoch, SharedState shared);
  // `pass`: none where weights are shared alone.
  void start_workers(const std::optional<Pass>& pass);
  void run_rank(Executor& executor, const std::optional<Pass>& pass);
  bool run_exchanges(Lane& lane, Rank rank);
  bool agree(Executor& executor);
  // Whether ranks draw from generators of their own: one rank alone shares the process's.
  bool has_rank_generators() const {
    return options_.random.seed.has_value() || executors_.size() > 1;
  }
  void abort_all() noexcept;
  void check_time_limit();
  void check_other_processes();
  std::optional<std::string> wait_for_reason();
  std::string describe_waits() const;
  std::vector<double> own_losses() const;

  FirstFailure failure_;
  CoreSpread spread_;
  std::vector<std::unique_ptr<Executor>> executors_;
  std::unique_ptr<CopyExchange> copies_;
  std::unique_ptr<TiedExchange> ties_;
  std::vector<Exchange*> exchanges_;  // those of the two that there are, as they are run
  std::unique_ptr<Agreement> agreement_;
  std::unique_ptr<FailureBoard> board_;
  RuntimeOptions options_;
  Progress agreement_progress_;
  std::vector<double> agreed_;
  std::int64_t last_poll_ns_ = 0;
  bool share_losses_ = false;
  bool usable_ = true;
  std::unique_ptr<Workers> workers_;  // last: joined before what they use goes
};

}  // namespace pipert

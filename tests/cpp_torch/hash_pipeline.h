// HashPipeline: real Executors, channels and lanes under HashStages, driven as pipert drives them,
// by a caller whose own streams are late too. All that it computes is compared with PlainLoop.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "hash_stage.h"
#include "plain_loop.h"
#include "plan/lower.h"
#include "runtime/pipeline_runtime.h"

namespace pipert {

struct HashPrograms {
  Placement placement;
  std::vector<Program> training;  // by rank
  std::vector<Program> evaluation;
};
// ValueError where it can't be lowered.
HashPrograms lower_for_hashes(const Schedule& schedule, const LowerOptions& options);

struct HashPipelineOptions {
  std::vector<int> devices;     // by rank; empty: all on 0
  bool default_streams = true;  // are the caller's; else others
  bool device_times = false;    // are taken, and looked at
};

class HashPipeline {
 public:
  HashPipeline(HashPrograms programs, const HashPipelineOptions& options);
  ~HashPipeline();

  // Gives the caller's streams a batch, runs a pass, gives them the results to copy and, after one
  // that trains, an update of the weights. Waits for no stream. The update and the next pass's
  // batch are late, too.
  void run(bool training);
  // A pass that ends early: `failing` throws, or somebody interrupts after a while. (It may be too
  // late for that.)
  void run_failing(const Action& failing);
  void run_interrupted(std::chrono::microseconds after);

  // Waits for the caller's streams. How many of all results so far differ from the plain loop's.
  int num_wrong();

  // Compute actions and moves of a pass that trains, rank by rank.
  std::vector<Action> actions() const;
  // Whether it is one of the streams that a caller may have.
  static bool is_of_caller(cuda::Stream stream);

 private:
  struct Result {
    Words expected;
    Words actual;  // once the caller's streams have passed
  };

  int num_microbatches() const { return programs_.training.front().num_microbatches; }
  int device_of(StageIndex stage) const;
  void make_weights();
  std::vector<RankSpec> make_ranks();
  void make_batch(std::uint64_t pass);
  std::optional<Failure> run_pass(bool training, std::optional<std::chrono::microseconds> limit);
  // After a pass: what came of it, `failure` or results.
  void end(bool training, const std::optional<Failure>& failure);
  void expect(const Words& expected, const at::Tensor& actual);
  void check_times() const;

  HashPrograms programs_;
  HashPipelineOptions options_;
  PlainLoop plain_;
  // Where each microbatch begins and ends, by microbatch.
  std::vector<StageIndex> first_stages_;
  std::vector<StageIndex> last_stages_;
  std::vector<std::unique_ptr<cuda_fake::StreamScope>> streams_;  // the caller's, by device
  std::vector<HashWeights> weights_;                              // by stage
  HashBatch batch_;
  std::vector<HashStage*> stages_;  // by stage, the runtime's
  std::deque<Result> results_;      // which stay where they are
  std::uint64_t pass_ = 0;
  std::unique_ptr<PipelineRuntime> runtime_;  // the last member: it uses the others
};

}  // namespace pipert

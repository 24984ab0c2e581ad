// PythonRuntime: a PipelineRuntime with Python stages, driven by the thread that calls step().
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/batch_shares.h"
#include "bindings/python_body.h"
#include "bindings/python_threads.h"
#include "runtime/pipeline_runtime.h"
#include "stage/action_recorder.h"
#include "stage/module_stage.h"

namespace pipert {

struct PythonRank {
  Program training;
  Program evaluation;
  c10::Device device{c10::kCPU};
};

struct PythonOptions {
  double timeout_s = 0.0;
  int intra_op_threads = 1;
  int spin_us = 0;
  std::shared_ptr<EmulatedNetwork> network;    // null: none
  std::optional<kernels::Format> compression;  // see ChannelOptions
  bool share_losses = false;
  RandomOptions random;
  std::map<StageIndex, std::int64_t> first_layers;     // see RankResources
  std::map<StageIndex, std::vector<bool>> recomputed;  // see ModuleStage; without an entry: none
  bool measure_memory = false;
  TraceOptions trace;
  std::shared_ptr<ActionRecorder> recorder;     // of the one rank; null: actions run as they are
  pybind11::object advise;                      // see raise_pipeline_error
  std::shared_ptr<const MessageValues> values;  // see RankResources
  BatchSpecs specs;
};

class PythonRuntime {
 public:
  // `stages`: those of the ranks given. `loss_fn`: None where there is none. `overlap_fn`: runs
  // the programs' joint pairs; None: one half after the other.
  PythonRuntime(const std::vector<PythonStage>& stages, std::vector<PythonRank> ranks,
                pybind11::object loss_fn, const pybind11::object& overlap_fn,
                ExternalChannels external, PythonOptions options);
  ~PythonRuntime();

  // One pass of the batch, which the caller began at `begun_ns` of the monotonic clock. Raises
  // pipert.PipelineError, ValueError, or what a signal handler raised.
  void step(StepArguments arguments, std::int64_t begun_ns);
  // The caller is about to have the result of the last pass, which ended well: the trace's end.
  void end_trace();
  // Second copies take over the weights and buffers of the first, and all who use a parameter its
  // owner's values. Raises as step().
  void share_weights(SharedState shared);
  // After a step, all who use a parameter take over its owner's gradient. Raises as step().
  void share_gradients(std::vector<TiedWeight> weights);
  void close();
  // Tells the other processes that this one won't run the pass, because of `text` (see
  // pipert.errors).
  void withdraw(const std::string& text);
  bool running() const { return running_; }
  bool usable() const { return runtime_ != nullptr && runtime_->usable(); }

  // The losses of the last pass, shape (num_microbatches,), and their weights: of the last stages
  // if one is here, else what its rank shared; None if neither.
  pybind11::object losses() const;
  std::vector<double> loss_weights() const;

  // What the last stages kept of the last pass: (outputs, metrics), of the microbatches that ended
  // in this process. Outputs are a dict by microbatch, metrics one by name (see stack_metrics).
  // Both None where there is no last stage here.
  pybind11::tuple kept();
  // By rank of this process: the most activations at a time in the last pass.
  std::map<Rank, int> peak_activations();
  // How each stage of this process ran in the last pass; and the loss function, nothing where the
  // last stage is elsewhere.
  std::map<StageIndex, std::string> stage_kinds() const;
  std::optional<std::string> loss_kind() const;
  PipelineRuntime& runtime();
  const std::map<StageIndex, ModuleStage*>& stages() const { return stages_; }
  // As the Executor runs it.
  const Stage& run_stage(StageIndex stage) const { return *run_stages_.at(stage); }

 private:
  void set_batches(const StepArguments& arguments);
  bool has_first() const;
  bool has_last() const;
  // The entries of `all`, one for each microbatch, that `stage` runs; the others are empty.
  std::vector<BatchPiece> own(StageIndex stage, std::vector<BatchPiece> all) const;
  // Begins with `start`, and goes on until no rank runs any more.
  void run(const std::function<void()>& start);
  // Tell the other processes, if there are any.
  void publish(const pybind11::error_already_set& error);
  void publish_interrupt(const Failure& failure);
  void clear_batches();
  // By microbatch, what a pass gave whose actions are recorded or replayed: the caller's own.
  void settle(pybind11::dict& outputs, pybind11::dict& metrics);
  // What the losses of the microbatches count, if that isn't their share of the rows; else none.
  std::vector<double> chosen_weights(const BatchShares& shares) const;

  int num_microbatches_ = 0;
  std::map<StageIndex, StagePosition> positions_;
  std::map<StageIndex, std::vector<bool>> runs_;  // by stage, then by microbatch: whether it passes
  std::map<StageIndex, BatchBody*> bodies_;       // owned by the runtime's stages
  std::map<StageIndex, ModuleStage*> stages_;     // owned by the runtime
  std::map<StageIndex, Stage*> run_stages_;       // likewise: the same, or what stands around them
  std::map<StageIndex, std::optional<std::vector<std::string>>> keywords_;
  // Where a stage takes its pieces flat, the batch that they are of, until the pass is over: a
  // tensor that Python has seen takes the GIL when it dies.
  std::optional<StepArguments> held_;
  std::shared_ptr<ActionRecorder> recorder_;  // shared with the stages, and the caller
  PythonThreads threads_;
  pybind11::object advise_;
  BatchSpecs specs_;
  int process_;  // that made it: a fork has none of its threads
  std::unique_ptr<PipelineRuntime> runtime_;
  std::int64_t epoch_ = 0;
  bool running_ = false;
};

}  // namespace pipert

// PythonRuntime: a PipelineRuntime with Python stages, driven by the thread that calls step().
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autograd/main_gradients.h"
#include "bindings/python_body.h"
#include "bindings/python_threads.h"
#include "runtime/pipeline_runtime.h"

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
  bool share_losses = false;
  RandomOptions random;
  std::map<StageIndex, std::int64_t> first_layers;     // see RankResources
  std::map<StageIndex, std::vector<bool>> recomputed;  // see ModuleStage; without an entry: none
  bool measure_memory = false;
};

struct StepArguments {
  pybind11::object args;    // a tuple, a list of tuples (is_cut), or None: not this rank's business
  pybind11::object kwargs;  // a dict, a list of dicts (is_cut), or None
  pybind11::object target;  // anything, a list (is_cut), or None
  pybind11::object loss_kwargs;  // a dict or None
  bool is_cut = false;
  bool training = true;
  bool compute_loss = true;
  bool keep_outputs = false;
  std::int64_t step = 0;                             // training passes before this one
  std::vector<MainGradients::Entry> main_gradients;  // empty: gradients stay in .grad
};

class PythonRuntime {
 public:
  // `stages`: those of the ranks given. `loss_fn`: None where there is none.
  PythonRuntime(const std::vector<PythonStage>& stages, std::vector<PythonRank> ranks,
                pybind11::object loss_fn, ExternalChannels external, PythonOptions options);
  ~PythonRuntime();

  // One pass of the batch. Raises pipert.PipelineError, ValueError, or what a signal handler
  // raised.
  void step(StepArguments arguments);
  void close();
  // Tells the other processes that this one won't run the pass, because of `text` (see
  // pipert.errors).
  void withdraw(const std::string& text);
  bool running() const { return running_; }
  bool usable() const { return runtime_ != nullptr && runtime_->usable(); }

  // The losses of the last pass, shape (num_microbatches,), and their weights: of the last stage if
  // it is here, else what its rank shared; None if neither.
  pybind11::object losses() const;
  std::vector<double> loss_weights() const;

  pybind11::object outputs();
  PipelineRuntime& runtime();
  const std::map<StageIndex, ModuleStage*>& stages() const { return stages_; }

 private:
  void set_batches(const StepArguments& arguments);
  void run(const Pass& pass);
  // Tell the other processes, if there are any.
  void publish(const pybind11::error_already_set& error);
  void publish_interrupt(const Failure& failure);
  void clear_batches();

  int num_stages_ = 0;
  int num_microbatches_ = 0;
  std::map<StageIndex, PythonBody*> bodies_;   // owned by the runtime's stages
  std::map<StageIndex, ModuleStage*> stages_;  // owned by the runtime
  std::map<StageIndex, std::optional<std::vector<std::string>>> keywords_;
  PythonThreads threads_;
  int process_;  // that made it: a fork has none of its threads
  std::unique_ptr<PipelineRuntime> runtime_;
  std::int64_t epoch_ = 0;
  bool running_ = false;
};

}  // namespace pipert

// PythonBody: a stage body that is a Python callable, with the loss function on the last stage. It
// holds the GIL from the call until the stage has taken the result apart.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/python_buffers.h"
#include "stage/module_stage.h"

namespace pipert {

// The batch of one pass, already cut, as one stage sees it. Each list has one entry for each
// microbatch or is empty. Written by the caller before the pass; entries are dropped as they are
// used.
struct BodyBatch {
  std::vector<pybind11::object> args;    // tuples of positional arguments; the first stage's alone
  std::vector<pybind11::object> kwargs;  // dicts of the keyword arguments that this stage takes
  std::vector<pybind11::object>
      targets;  // the last stage's alone; empty: the loss function takes the output alone
  pybind11::object loss_kwargs;  // a dict or None
  bool compute_loss = false;
  bool keep_outputs = false;
};

// What Python tells of one stage of this process.
struct PythonStage {
  StageIndex stage = 0;
  pybind11::object callable;  // any nn.Module or function
  bool spread = true;  // whether a tuple from the stage before becomes several positional arguments
  // The keyword arguments that it takes; nothing: any.
  std::optional<std::vector<std::string>> keywords;
  // Which of kContextKeywords it is to be given.
  std::vector<std::string> context_keywords;
};

class PythonBody final : public StageBody {
 public:
  // `loss_fn`: None on all stages but the last.
  PythonBody(StagePosition position, const PythonStage& stage, pybind11::object loss_fn);
  ~PythonBody() override;  // takes the GIL

  BodyResult forward(const RunContext& context, BodyInput input) override;
  bool trains() const override;
  // torch's engine sets a Python hook's exception on the thread as well: the next Python call there
  // would raise it.
  void backward_failed() noexcept override;

  // REQUIRES the GIL, and that no pass is running.
  void set_batch(BodyBatch batch);
  // The last stage's outputs of the last pass, by microbatch, detached.
  std::vector<pybind11::object> take_outputs();

 private:
  // What one call of the user's code is given.
  struct Call {
    pybind11::tuple args;
    pybind11::object kwargs;  // a dict, or null
    pybind11::object target;  // or null
  };

  Call take_call(const RunContext& context, BodyInput input);
  // Tensors of the stage before, as positional arguments.
  pybind11::tuple arguments(const BodyInput& input) const;
  BodyResult run(const RunContext& context, Call call, BodyRun run);
  // Keeps what run_again() needs.
  BodyResult run_first(const RunContext& context, Call call);
  BodyResult run_again(const RunContext& context, Call call);
  void add_context(const RunContext& context, pybind11::object& kwargs) const;
  at::Tensor compute_loss(const pybind11::object& output, const pybind11::object& target);

  StagePosition position_;
  pybind11::object callable_;
  bool spread_;
  pybind11::object loss_fn_;
  std::string output_name_;  // "stage 1's output", for errors
  std::vector<pybind11::str> context_keywords_;
  BodyBatch batch_;
  ModuleBuffers buffers_;
  std::map<Microbatch, ModuleBuffers::Snapshot> snapshots_;  // of those that will run again
  bool changes_arguments_ = false;  // whether the code was seen to work in place on the batch
  std::vector<pybind11::object> outputs_;
};

}  // namespace pipert

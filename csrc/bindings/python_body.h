// PythonBody: a stage body that is a Python callable, with the loss function on the last stage. It
// holds the GIL from the call until the stage has taken the result apart.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/batch_body.h"
#include "bindings/python_buffers.h"

namespace pipert {

// What Python tells of one stage of this process.
struct PythonStage {
  StageIndex stage = 0;
  pybind11::object callable;  // any nn.Module or function
  bool is_first = true;       // of its copy of the model
  bool is_last = true;
  bool spread = true;  // whether a tuple from the stage before becomes several positional arguments
  // The keyword arguments that it takes; nothing: any.
  std::optional<std::vector<std::string>> keywords;
  bool is_native = false;  // whether it, and the loss function behind it, shall run without Python
  // Which of kContextKeywords it is to be given.
  std::vector<std::string> context_keywords;
};

class PythonBody final : public BatchBody {
 public:
  // `loss_fn`: None on all stages but the last.
  PythonBody(StagePosition position, const PythonStage& stage, pybind11::object loss_fn);
  ~PythonBody() override;  // takes the GIL

  BodyResult forward(const RunContext& context, BodyInput input) override;
  bool trains() const override;
  // Whether its module, or the loss function, has buffers. REQUIRES the GIL.
  bool has_buffers() const;
  // torch's engine sets a Python hook's exception on the thread as well: the next Python call there
  // would raise it.
  void backward_failed() noexcept override;

  void set_batch(BodyBatch batch) override;
  std::vector<pybind11::object> take_outputs() override;
  std::vector<Metrics> take_metrics() override { return std::exchange(metrics_, {}); }

  // The parts of forward(), for a body that computes some of them itself.
  // What one call of the user's code is given.
  struct Call {
    pybind11::tuple args;
    pybind11::object kwargs;  // a dict, or null
    pybind11::object target;  // or null
  };
  BodyBatch& batch() { return batch_; }
  static std::unique_ptr<BodyHold> hold();  // of the GIL, in this rank's turn
  // The loss, of what the loss function returned; keeps the metrics. Needs no hold.
  at::Tensor take_loss(const RunContext& context, BodyRun run, const FlatValue& returned);
  // All below REQUIRE a hold.
  Call take_call(const RunContext& context, BodyInput input);
  pybind11::object call_stage(const Call& call);
  void keep_output(const RunContext& context, const pybind11::object& output);
  // Taken out, unless it `is_kept`.
  pybind11::object take_target(const RunContext& context, bool is_kept);
  FlatValue call_loss(const pybind11::object& output, const pybind11::object& target);
  // The positional arguments that a value from the stage before stands for.
  static pybind11::tuple positional(pybind11::object value, bool spread);

 private:
  // Tensors of the stage before, as positional arguments.
  pybind11::tuple arguments(const BodyInput& input) const;
  BodyResult run(const RunContext& context, Call call, BodyRun run);
  // Keeps what run_again() needs.
  BodyResult run_first(const RunContext& context, Call call);
  BodyResult run_again(const RunContext& context, Call call);
  void add_context(const RunContext& context, pybind11::object& kwargs) const;

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
  std::vector<Metrics> metrics_;  // by microbatch
};

}  // namespace pipert

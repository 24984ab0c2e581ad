// PythonBody: a stage body that is a Python callable, with the loss function on the last stage. It
// holds the GIL from the call until the stage has taken the result apart.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

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

class PythonBody final : public StageBody {
 public:
  // `callable`: any nn.Module or function. `spread`: whether a tuple from the stage before becomes
  // several positional arguments. `loss_fn`: None on all stages but the last.
  PythonBody(StagePosition position, pybind11::object callable, bool spread,
             pybind11::object loss_fn);
  ~PythonBody() override;  // takes the GIL

  BodyResult forward(const RunContext& context, BodyInput input) override;
  bool trains() const override;
  // torch's engine sets a Python hook's exception on the thread as well: the next Python call there
  // would raise it.
  void backward_failed() noexcept override;

  // REQUIRES the GIL, and that no pass is running.
  void set_batch(BodyBatch batch) { batch_ = std::move(batch); }
  // The last stage's outputs of the last pass, by microbatch, detached; empty for those that it
  // didn't run.
  std::vector<pybind11::object> take_outputs();

 private:
  pybind11::tuple arguments(const RunContext& context, BodyInput input);
  at::Tensor compute_loss(const RunContext& context, const pybind11::object& output);

  StagePosition position_;
  pybind11::object callable_;
  bool spread_;
  pybind11::object loss_fn_;
  std::string output_name_;  // "stage 1's output", for errors
  BodyBatch batch_;
  std::vector<pybind11::object> outputs_;
};

}  // namespace pipert

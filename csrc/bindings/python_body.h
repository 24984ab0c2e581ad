// PythonBody: a stage body that is a Python callable, with the loss function on the last stage. It
// holds the GIL from the call until the stage has taken the result apart.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/batch_body.h"

namespace pipert {

class PythonBody final : public BatchBody {
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

  void set_batch(BodyBatch batch) override { batch_ = std::move(batch); }
  std::vector<pybind11::object> take_outputs() override;

  // The parts of forward(), for a body that computes some of them itself.
  BodyBatch& batch() { return batch_; }
  static std::unique_ptr<BodyHold> hold();  // of the GIL, in this rank's turn
  // All below REQUIRE a hold.
  pybind11::object call_stage(const RunContext& context, BodyInput input);
  void keep_output(const RunContext& context, const pybind11::object& output);
  at::Tensor compute_loss(const RunContext& context, const pybind11::object& output);
  // The positional arguments that a value from the stage before stands for.
  static pybind11::tuple positional(pybind11::object value, bool spread);

 private:
  pybind11::tuple arguments(const RunContext& context, BodyInput input);

  StagePosition position_;
  pybind11::object callable_;
  bool spread_;
  pybind11::object loss_fn_;
  std::string output_name_;  // "stage 1's output", for errors
  BodyBatch batch_;
  std::vector<pybind11::object> outputs_;
};

}  // namespace pipert

// NativeBody: a stage body that runs exported graphs, and its module where it has none.
//
// Where graphs run for the stage and its loss, it needs no GIL.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/native_function.h"
#include "bindings/python_body.h"

namespace pipert {

class NativeBody final : public BatchBody {
 public:
  // As PythonBody's.
  NativeBody(StagePosition position, const PythonStage& stage, pybind11::object loss_fn);

  BodyResult forward(const RunContext& context, BodyInput input) override;
  bool trains() const override { return trains_; }
  void backward_failed() noexcept override { python_.backward_failed(); }

  void set_batch(BodyBatch batch) override { python_.set_batch(std::move(batch)); }
  std::vector<pybind11::object> take_outputs() override;
  std::vector<Metrics> take_metrics() override { return python_.take_metrics(); }
  bool wants_flat() const override { return true; }
  void prepare(bool may_export) override;
  std::string kind() const override { return stage_.kind(); }
  std::string loss_kind() const override;

 private:
  // What a graph of the stage gets; nothing where an argument isn't flat.
  std::optional<NativeInput> stage_input(const RunContext& context, const BodyInput& input);
  std::optional<NativeInput> loss_input(const RunContext& context, const FlatValue& output);

  BodyResult run_module(const RunContext& context, BodyInput input);
  BodyResult run_graph(const RunContext& context, ExportedCall& call, NativeInput arguments,
                       BodyRun run);
  void finish_natively(const RunContext& context, FlatValue output, BodyRun run,
                       BodyResult& result);
  bool has_buffers();
  // Of what the batch has for the microbatch: moves when one of its tensors is changed in place.
  std::uint64_t sum_of_versions(Microbatch microbatch);
  // What the loss function's graph returns; nothing where there is none.
  std::optional<FlatValue> native_loss(const RunContext& context, const FlatValue& output);

  StagePosition position_;
  PythonBody python_;  // has the batch
  bool trains_ = false;
  std::optional<bool> has_buffers_;  // in this pass, once it was asked for
  NativeFunction stage_;
  std::unique_ptr<NativeFunction> loss_;           // the last stage's, if there is a loss function
  std::vector<std::optional<FlatValue>> outputs_;  // that no Python has seen, by microbatch
};

}  // namespace pipert

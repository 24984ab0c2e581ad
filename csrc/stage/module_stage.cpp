#include "stage/module_stage.h"

#include <ATen/ops/full_like.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

#include "autograd/backward.h"
#include "autograd/graph.h"
#include "stage/gradient_check.h"
#include "stage/microbatch_scope.h"

namespace pipert {
namespace {

// Inputs and outputs of one microbatch of a small stage: see Note [What Python has seen dies
// where the GIL is held].
constexpr std::size_t kSmallBytes = 64 * 1024;

std::size_t num_bytes(const std::vector<at::Tensor>& tensors) {
  std::size_t bytes = 0;
  for (const at::Tensor& tensor : tensors)
    // Sparse tensors don't say; they are as good as large.
    bytes += !tensor.defined()                 ? 0
             : tensor.layout() == at::kStrided ? tensor.nbytes()
                                               : kSmallBytes + 1;
  return bytes;
}

// The loss alone: torch's mse_loss hands it out in memory as large as its input.
at::Tensor number_of(const at::Tensor& loss) {
  const bool is_alone = !loss.has_storage() || loss.storage().nbytes() == loss.nbytes();
  return is_alone ? loss.detach() : loss.detach().clone();
}

std::string describe_rows(std::int64_t rows) {
  return rows == kInPieces ? "a batch that is cut already" : c10::str("a batch of ", rows, " rows");
}

std::vector<std::int64_t> versions_of(const std::vector<at::Tensor>& tensors) {
  std::vector<std::int64_t> versions;
  for (const at::Tensor& tensor : tensors) versions.push_back(tensor._version());
  return versions;
}

// The same for somebody who may make them part of a graph and, with `copies`, write to them.
Message lend(const Message& input, bool copies) {
  Message lent;
  lent.structure = input.structure;
  lent.requires_grad = input.requires_grad;
  for (const at::Tensor& tensor : input.tensors)
    lent.tensors.push_back(copies ? tensor.clone() : tensor.detach());
  return lent;
}

}  // namespace

ModuleStage::ModuleStage(StagePosition position, int num_microbatches,
                         std::unique_ptr<StageBody> body, bool shares_gil)
    : position_(position),
      body_(std::move(body)),
      in_flight_(as_index(num_microbatches)),
      shares_gil_(shares_gil) {}

void ModuleStage::begin(LossWeights weights, std::int64_t rows) {
  weights_ = std::move(weights);
  rows_ = rows;
  losses_.clear();
  loss_weights_.clear();
}

Message ModuleStage::forward(const RunContext& context, Message input) {
  InFlight& state = entry(context, Phase::kIdle);
  const double weight = weight_of(context, input);
  const std::int64_t batch_size = position_.is_first ? rows_ : input.batch_size;
  const std::shared_ptr<const Structure> given = input.structure;
  if (context.pass.training) {
    state.phase = Phase::kForwardDone;
    ++num_in_flight_;
    state.needs_gradient = input.requires_grad;
    state.weight = weight;
    state.num_bytes = num_bytes(input.tensors);
  }
  if (context.pass.training && context.offloads) {
    state.store = std::make_shared<ActivationStore>(
        c10::str("stage ", position_.stage, ", microbatch ", context.microbatch));
  }
  BodyResult result = is_recomputed(context)
                          ? run_first(context, std::move(input), state)
                          : run_body(context, std::move(input), BodyRun::kOnly, state);
  Message output;
  output.weight = weight;
  output.batch_size = batch_size;
  if (position_.is_last) {
    if (result.loss.defined() || context.pass.training) keep_loss(context, weight, result.loss);
  } else {
    if (context.pass.training)
      check_gradient_flows(result, {state.needs_gradient, given.get(), read_elsewhere_}, *body_);
    if (context.pass.training) state.num_bytes += num_bytes(result.tensors);
    output.structure = std::move(result.structure);
    output.requires_grad.reserve(result.tensors.size());
    output.tensors.reserve(result.tensors.size());
    for (const at::Tensor& tensor : result.tensors) {
      output.requires_grad.push_back(context.pass.training && tensor.requires_grad());
      output.tensors.push_back(tensor.requires_grad() ? tensor.detach() : tensor);
    }
  }
  if (context.pass.training && !state.lacks_graph) keep_roots(result, state);
  if (leaves_.has_value() && trains_others(context.microbatch, *leaves_)) trains_others_ = true;
  return output;
}

BodyResult ModuleStage::run_body(const RunContext& context, Message input, BodyRun run,
                                 InFlight& state) {
  if (context.pass.training) state.sink = attach_sink(input.tensors, input.requires_grad);
  const bool saves = state.store != nullptr && run == BodyRun::kOnly;
  const std::unique_ptr<Saving> saving = saves ? start_saving_(state.store) : nullptr;
  BodyResult result = body_->forward(context, {std::move(input.tensors), std::move(input.structure),
                                               std::exchange(retired_, {}), run});
  state.seen_by_python = result.hold != nullptr;
  return result;
}

BodyResult ModuleStage::run_first(const RunContext& context, Message input, InFlight& state) {
  state.random = save_random_state(context.device);
  state.input = std::move(input);
  const auto versions = versions_of(state.input.tensors);
  BodyResult result =
      run_body(context, lend(state.input, /*copies=*/changes_input_), BodyRun::kFirst, state);
  const bool changed = versions != versions_of(state.input.tensors);
  changes_input_ = changes_input_ || changed;
  state.num_outputs = result.tensors.size();
  set_absent(&InFlight::lacks_graph, result.can_run_again && !changed, state);
  if (state.lacks_graph) {
    state.sink = {};
  } else {
    state.input = {};
    state.random = {};
  }
  return result;
}

void ModuleStage::recompute(const RunContext& context) {
  InFlight& state = entry(context, Phase::kForwardDone);
  if (!state.lacks_graph) return;
  RunContext again = context;
  again.is_recomputing = true;
  const MicrobatchScope scope(again, forward_stream(context.pass));
  const RandomReplay replay(std::exchange(state.random, {}), context.device);
  const BodyResult result = run_body(again, std::exchange(state.input, {}), BodyRun::kAgain, state);
  TORCH_CHECK_VALUE(result.tensors.size() == state.num_outputs,
                    "a stage that is recomputed must do the same both times: stage ",
                    position_.stage, " returned ", state.num_outputs, " tensors for microbatch ",
                    context.microbatch, ", and ", result.tensors.size(), " when it ran again");
  keep_roots(result, state);
  set_absent(&InFlight::lacks_graph, false, state);
  state.ran_again = true;
}

void ModuleStage::set_absent(bool InFlight::* why, bool value, InFlight& state) {
  const bool before = state.is_absent();
  state.*why = value;
  num_absent_ += static_cast<int>(state.is_absent()) - static_cast<int>(before);
}

void ModuleStage::keep_roots(const BodyResult& result, InFlight& state) const {
  using torch::autograd::impl::gradient_edge;
  if (position_.is_last) {
    state.roots = {gradient_edge(result.loss)};
    // A mean over no tokens is NaN, and so is its gradient, whatever it is multiplied with.
    const bool counts = state.weight != 0.0;
    state.seeds = {counts ? at::full_like(result.loss.detach(), state.weight) : at::Tensor()};
    return;
  }
  for (const at::Tensor& tensor : result.tensors) {
    state.roots.push_back(tensor.requires_grad() ? gradient_edge(tensor) : torch::autograd::Edge());
  }
}

double ModuleStage::weight_of(const RunContext& context, const Message& input) const {
  if (!position_.is_first) check_batches(context, input);
  if (!weights_.by_microbatch.empty()) return weights_.by_microbatch[as_index(context.microbatch)];
  const double weight = position_.is_first ? kUnknownWeight : input.weight;
  const bool is_asked = position_.is_last && weight == kUnknownWeight;
  return is_asked ? 1.0 / context.num_microbatches : weight;
}

void ModuleStage::check_batches(const RunContext& context, const Message& input) const {
  if (rows_ != 0 && input.batch_size != 0 && rows_ != input.batch_size) {
    TORCH_CHECK_VALUE(
        false, "ranks were given different batches: ", describe_rows(input.batch_size),
        " on the first stage's rank, and ", describe_rows(rows_), " for stage ", position_.stage);
  }
  const bool is_known = !weights_.by_microbatch.empty() && input.weight != kUnknownWeight;
  if (!is_known || weights_.are_chosen) return;
  const double weight = weights_.by_microbatch[as_index(context.microbatch)];
  TORCH_CHECK_VALUE(weight == input.weight, "ranks were given different batches: microbatch ",
                    context.microbatch, " has a share of ", input.weight,
                    " of the batch on the first stage's rank and of ", weight, " for stage ",
                    position_.stage);
}

void ModuleStage::keep_loss(const RunContext& context, double weight, const at::Tensor& loss) {
  TORCH_CHECK_VALUE(loss.defined(),
                    "the last stage needs a loss function to train: expected loss_fn, got None");
  TORCH_CHECK_VALUE(loss.numel() == 1, "the loss must be one number, got a tensor of shape ",
                    loss.sizes());
  losses_.resize(as_index(context.num_microbatches));
  loss_weights_.resize(as_index(context.num_microbatches));
  losses_[as_index(context.microbatch)] = number_of(loss);
  loss_weights_[as_index(context.microbatch)] = weight;
  TORCH_CHECK_VALUE(!context.pass.training || loss.requires_grad(), "the loss of microbatch ",
                    context.microbatch,
                    " does not require a gradient: no parameter of the model leads to it");
}

Message ModuleStage::backward(const RunContext& context, Message gradients) {
  recompute(context);
  InFlight state = std::exchange(entry(context, Phase::kForwardDone), {});
  --num_in_flight_;
  Seeds seeds = take_seeds(context, state, std::move(gradients));
  const bool keep_graph = keeps_graph(state, seeds.roots);
  run_engine([&] { run_backward(seeds.roots, seeds.gradients, keep_graph); });
  if (keep_graph) {
    for (auto& root : seeds.roots) retired_.push_back(std::move(root.function));
  }
  seeds = {};  // or one that is handed on as it came would be copied
  return input_gradients(state);
}

Message ModuleStage::backward_input(const RunContext& context, Message gradients) {
  recompute(context);
  InFlight& state = entry(context, Phase::kForwardDone);
  Seeds seeds = take_seeds(context, state, std::move(gradients));
  state.keep_graph = keeps_graph(state, seeds.roots);
  state.was_split = !recomputes_ && state.sink.node != nullptr;
  run_engine([&] {
    state.weights = run_input_backward(seeds.roots, seeds.gradients, state.sink.node,
                                       {.keep_graph = state.keep_graph,
                                        .split = !recomputes_,
                                        .may_repeat = is_repeatable_ && state.keep_graph},
                                       retired_, unsplit_);
  });
  seeds = {};  // as in backward()
  state.phase = Phase::kInputDone;
  return input_gradients(state);
}

void ModuleStage::backward_weight(const RunContext& context) {
  InFlight state = std::exchange(entry(context, Phase::kInputDone), {});
  --num_in_flight_;
  run_engine([&] {
    const bool ran_again = std::move(state.weights).run(state.keep_graph, retired_);
    if (!ran_again || !state.was_split) return;
    recomputes_ = true;
    unsplit_.insert(
        {"the whole stage",
         "its saved tensors are computed again in backward (checkpointed blocks), which "
         "two halves would do twice"});
  });
}

void ModuleStage::offload(const RunContext& context, Lane& lane) {
  InFlight& state = entry(context, Phase::kForwardDone);
  TORCH_INTERNAL_ASSERT(state.store != nullptr && !state.on_host, "microbatch ", context.microbatch,
                        " on stage ", position_.stage, " can't be moved to the host");
  for (at::Tensor& tensor : state.input.tensors)  // that is to run again
    state.stored_input.push_back(state.store->pack(std::exchange(tensor, {})));
  state.store->offload(lane);
  set_absent(&InFlight::on_host, true, state);
}

void ModuleStage::reload(const RunContext& context, Lane& lane, Lane& compute) {
  InFlight& state = entry(context, Phase::kForwardDone);
  TORCH_INTERNAL_ASSERT(state.on_host, "microbatch ", context.microbatch, " on stage ",
                        position_.stage, " is not on the host");
  state.store->reload(lane, compute);
  for (std::size_t i = 0; i < state.stored_input.size(); ++i)
    state.input.tensors[i] = state.stored_input[i]->unpack();
  state.stored_input.clear();
  set_absent(&InFlight::on_host, false, state);
}

ModuleStage::InFlight& ModuleStage::entry(const RunContext& context, Phase phase) {
  InFlight& state = in_flight_[as_index(context.microbatch)];
  TORCH_INTERNAL_ASSERT(state.phase == phase, "microbatch ", context.microbatch, " on stage ",
                        position_.stage, " is in phase ", static_cast<int>(state.phase),
                        ", expected ", static_cast<int>(phase));
  return state;
}

std::vector<torch::autograd::Edge> ModuleStage::InFlight::input_edges() const {
  std::vector<torch::autograd::Edge> edges;
  std::uint32_t next = 0;
  for (const bool needed : needs_gradient) {
    edges.push_back(needed ? torch::autograd::Edge(sink.owner, next++) : torch::autograd::Edge());
  }
  return edges;
}

ModuleStage::Seeds ModuleStage::take_seeds(const RunContext& context, InFlight& state,
                                           Message gradients) const {
  const ForwardRun forward{position_.stage, context.microbatch, state.ran_again};
  Seeds seeds;
  const auto add = [&](std::vector<torch::autograd::Edge> roots, std::vector<at::Tensor> of) {
    for (std::size_t i = 0; i < roots.size(); ++i) {
      if (!of[i].defined() || !roots[i].is_valid()) continue;
      seeds.roots.push_back(std::move(roots[i]));
      seeds.gradients.push_back(std::move(of[i]));
    }
  };
  if (position_.is_last) {
    gradients.tensors = std::exchange(state.seeds, {});
  } else if (gradients.tensors.size() > state.roots.size()) {
    const auto end_of_outputs =
        gradients.tensors.begin() + static_cast<std::ptrdiff_t>(state.roots.size());
    std::vector<at::Tensor> relayed(end_of_outputs, gradients.tensors.end());
    gradients.tensors.erase(end_of_outputs, gradients.tensors.end());
    std::vector<torch::autograd::Edge> edges = state.input_edges();
    check_gradients(forward, Gradients::kOfInputs, edges, relayed);
    add(std::move(edges), std::move(relayed));
  }
  if (!position_.is_last)
    check_gradients(forward, Gradients::kOfOutputs, state.roots, gradients.tensors);
  add(std::exchange(state.roots, {}), std::move(gradients.tensors));
  return seeds;
}

bool ModuleStage::keeps_graph(const InFlight& state,
                              const std::vector<torch::autograd::Edge>& roots) const {
  if (is_repeatable_) return !has_compiled_node(roots);
  return shares_gil_ && state.seen_by_python && state.store == nullptr &&
         state.num_bytes <= kSmallBytes && !has_python_node(roots);
}

template <typename Backward>
void ModuleStage::run_engine(const Backward& backward) {
  try {
    backward();
  } catch (...) {
    body_->backward_failed();
    throw;
  }
}

Message ModuleStage::input_gradients(InFlight& state) {
  Message result;
  std::vector<at::Tensor> captured;
  if (state.sink.node != nullptr) captured = state.sink.node->take();
  state.sink = {};
  std::size_t next = 0;
  for (const bool needed : state.needs_gradient) {
    result.tensors.push_back(needed ? std::move(captured[next++]) : at::Tensor());
  }
  result.requires_grad.assign(result.tensors.size(), false);
  return result;
}

ModuleStage::Snapshot ModuleStage::save(Microbatch microbatch) const {
  const InFlight& state = in_flight_[as_index(microbatch)];
  Snapshot snapshot;
  snapshot.may_repeat_ = state.phase == Phase::kIdle ||
                         (state.phase == Phase::kForwardDone && !has_compiled_node(state.roots));
  if (!snapshot.may_repeat_) return snapshot;  // a copy would share gradients that are handed on
  snapshot.state_ = state;
  snapshot.num_in_flight_ = num_in_flight_;
  return snapshot;
}

void ModuleStage::restore(Microbatch microbatch, Snapshot snapshot) {
  TORCH_INTERNAL_ASSERT(snapshot.may_repeat());
  in_flight_[as_index(microbatch)] = std::move(snapshot.state_);
  num_in_flight_ = snapshot.num_in_flight_;
}

void ModuleStage::watch_leaves(std::optional<std::vector<at::Tensor>> leaves) {
  leaves_ = std::move(leaves);
  trains_others_ = false;
}

bool ModuleStage::trains_others(Microbatch microbatch,
                                const std::vector<at::Tensor>& leaves) const {
  return reaches_other_leaf(in_flight_[as_index(microbatch)].roots, leaves);
}

void ModuleStage::reset() noexcept {
  for (InFlight& state : in_flight_) state = {};
  num_in_flight_ = num_absent_ = 0;
  retired_.clear();
}

}  // namespace pipert

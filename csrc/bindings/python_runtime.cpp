#include "bindings/python_runtime.h"

#include <unistd.h>

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/utils/pybind.h>

#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "bindings/batch.h"
#include "bindings/python_failure.h"
#include "bindings/python_tree.h"
#include "bindings/saved_tensor_hooks.h"

namespace py = pybind11;

namespace pipert {
namespace {

// How long the caller sleeps between two looks at signals, time limits and other processes.
constexpr std::chrono::milliseconds kWatchEvery{20};

std::vector<py::object> as_list(py::handle value, int num_microbatches, const char* what) {
  std::vector<py::object> entries;
  for (const py::handle entry : value) entries.push_back(py::reinterpret_borrow<py::object>(entry));
  if (entries.size() != as_index(num_microbatches)) {
    throw ValueError(concat(what, " must have one entry for each of the ", num_microbatches,
                            " microbatches, got ", entries.size()));
  }
  return entries;
}

// Of each dict, the entries whose keys are in `keywords`.
std::vector<py::object> select(const std::vector<py::object>& dicts,
                               const std::optional<std::vector<std::string>>& keywords) {
  if (!keywords.has_value()) return dicts;
  std::vector<py::object> selected;
  for (const py::object& whole : dicts) {
    py::dict part;
    for (const std::string& keyword : *keywords) {
      const py::str key(keyword);
      if (whole.contains(key)) part[key] = whole[key];
    }
    selected.push_back(std::move(part));
  }
  return selected;
}

// Says that a pass is running while it lives. Guarded by the GIL.
class Running {
 public:
  explicit Running(bool& flag) : flag_(flag) { flag_ = true; }
  ~Running() { flag_ = false; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  bool& flag_;
};

}  // namespace

PythonRuntime::PythonRuntime(const std::vector<PythonStage>& stages, std::vector<PythonRank> ranks,
                             py::object loss_fn, ExternalChannels external, PythonOptions given) {
  process_ = getpid();
  if (ranks.empty()) throw ValueError("a pipeline needs at least one rank in this process");
  num_stages_ = ranks.front().training.num_stages;
  num_microbatches_ = ranks.front().training.num_microbatches;
  std::map<StageIndex, std::unique_ptr<ModuleStage>> built;
  for (const PythonStage& stage : stages) {
    const StagePosition position{stage.stage, num_stages_};
    auto body = std::make_unique<PythonBody>(position, stage,
                                             position.is_last() ? loss_fn : py::object(py::none()));
    bodies_[stage.stage] = body.get();
    keywords_[stage.stage] = stage.keywords;
    built[stage.stage] = std::make_unique<ModuleStage>(position, num_microbatches_, std::move(body),
                                                       /*shares_gil=*/ranks.size() > 1);
    built[stage.stage]->set_saving(&save_into);
    stages_[stage.stage] = built[stage.stage].get();
    if (const auto recomputed = given.recomputed.find(stage.stage);
        recomputed != given.recomputed.end())
      stages_[stage.stage]->set_recomputed(recomputed->second);
  }
  std::vector<RankSpec> specs(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    specs[i].training = std::move(ranks[i].training);
    specs[i].evaluation = std::move(ranks[i].evaluation);
    specs[i].device = ranks[i].device;
    specs[i].resources.first_layers = given.first_layers;
    for (const Instruction& instruction : specs[i].training.instructions) {
      const auto* run = std::get_if<Run>(&instruction.op);
      if (run == nullptr || !built.contains(run->action.stage)) continue;
      specs[i].resources.stages[run->action.stage] = std::move(built[run->action.stage]);
      built.erase(run->action.stage);
    }
  }
  connect(specs, external, given.spin_us);
  RuntimeOptions options;
  options.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(given.timeout_s * 1000.0));
  options.intra_op_threads = given.intra_op_threads;
  options.measure_memory = given.measure_memory;
  options.random = given.random;
  options.hooks = threads_.hooks();
  {
    const py::gil_scoped_release no_gil;  // where a thread can't start, those that did are joined
    runtime_ = std::make_unique<PipelineRuntime>(std::move(specs), std::move(external.agreement),
                                                 std::move(external.board), std::move(options));
  }
  runtime_->set_share_losses(given.share_losses);
}

PythonRuntime::~PythonRuntime() { close(); }

void PythonRuntime::close() {
  if (runtime_ == nullptr) return;
  if (running_)
    throw ValueError("the pipeline is running a step: it can be closed when that has ended");
  if (process_ != getpid()) {
    static_cast<void>(runtime_.release());  // whose threads are not here to be joined
    return;
  }
  auto closing = std::move(runtime_);
  bodies_.clear();
  stages_.clear();
  const py::gil_scoped_release no_gil;  // workers need it to end, bodies to let go of their modules
  closing.reset();
}

PipelineRuntime& PythonRuntime::runtime() {
  if (runtime_ == nullptr) throw ValueError("the pipeline is closed");
  return *runtime_;
}

void PythonRuntime::set_batches(const StepArguments& arguments) {
  BodyBatch first;
  BodyBatch last;
  std::vector<py::object> kwargs;
  std::vector<double> weights(as_index(num_microbatches_), 1.0 / num_microbatches_);
  std::int64_t rows = 0;
  if (arguments.is_cut) {
    if (!arguments.args.is_none())
      first.args = as_list(arguments.args, num_microbatches_, "microbatches");
    if (!arguments.kwargs.is_none())
      kwargs = as_list(arguments.kwargs, num_microbatches_, "microbatches");
    if (!arguments.target.is_none())
      last.targets = as_list(arguments.target, num_microbatches_, "target");
  } else {
    std::optional<std::int64_t> size;
    if (bodies_.contains(0)) size = batch_size(arguments.args);  // the others ignore it
    for (const py::object& value : {arguments.kwargs, arguments.target}) {
      if (!size.has_value()) size = batch_size(value);
    }
    if (size.has_value()) weights = batch_weights(num_microbatches_, *size);
    rows = size.value_or(0);
    const auto cut = [&](const py::object& value, const char* what) {
      if (value.is_none()) return std::vector<py::object>();
      return cut_batch(value, num_microbatches_, size.value_or(num_microbatches_), what);
    };
    if (bodies_.contains(0)) first.args = cut(arguments.args, "args");
    kwargs = cut(arguments.kwargs, "kwargs");
    if (bodies_.contains(num_stages_ - 1)) last.targets = cut(arguments.target, "target");
    // Without any of the batch here, the shares come with the messages.
    if (!size.has_value() && !bodies_.contains(0)) weights.clear();
  }
  for (auto& [stage, body] : bodies_) {
    BodyBatch batch;
    const bool is_last = stage == num_stages_ - 1;
    if (is_last) batch = std::move(last);
    if (stage == 0) batch.args = std::move(first.args);
    if (!kwargs.empty()) batch.kwargs = select(kwargs, keywords_.at(stage));
    batch.loss_kwargs = arguments.loss_kwargs;
    batch.compute_loss = arguments.compute_loss;
    batch.keep_outputs = arguments.keep_outputs;
    body->set_batch(std::move(batch));
    stages_.at(stage)->begin(stage == 0 || is_last ? weights : std::vector<double>(), rows);
  }
}

void PythonRuntime::withdraw(const std::string& text) {
  PipelineRuntime& told = runtime();
  const Running running(running_);      // or another thread might close it meanwhile
  const py::gil_scoped_release no_gil;  // a round trip to the store
  told.withdraw(text);
}

void PythonRuntime::clear_batches() {
  for (auto& [stage, body] : bodies_) body->set_batch({});
  for (auto& [index, stage] : stages_) stage->free_retired();
}

void PythonRuntime::step(StepArguments arguments) {
  runtime();
  if (running_)
    throw ValueError("the pipeline is running a step: it runs one at a time, for one thread");
  set_batches(arguments);
  const Pass pass{.epoch = epoch_++, .training = arguments.training, .step = arguments.step};
  MainGradients main_gradients(std::move(arguments.main_gradients));
  arguments = {};  // the bodies hold the pieces; nobody shall hold the whole
  run(pass);
  main_gradients.sweep();
}

void PythonRuntime::run(const Pass& pass) {
  const Running running(running_);
  {
    const py::gil_scoped_release no_gil;  // the first thing that a worker wants is the GIL
    runtime_->start(pass);
  }
  std::optional<py::error_already_set> signal;
  for (bool done = false; !done;) {
    {
      const py::gil_scoped_release no_gil;
      done = runtime_->watch(kWatchEvery);
    }
    if (!done && !signal.has_value() && PyErr_CheckSignals() != 0) {
      signal.emplace();
      const Failure interrupted{.kind = FailureKind::kInterrupted,
                                .rank = runtime_->executors().front()->rank(),
                                .action = {},
                                .message = "the step was interrupted",
                                .cause = nullptr};
      runtime_->interrupt(interrupted);
      threads_.interrupt();
      publish_interrupt(interrupted);  // now: this rank's own code may take its time to end
    }
  }
  std::optional<Failure> failure;
  {
    const py::gil_scoped_release no_gil;  // it may ask the store
    failure = runtime_->finish();
  }
  if (signal.has_value()) threads_.clear();
  clear_batches();
  if (!failure.has_value()) return;
  outputs();  // nobody will ask for them
  try {
    raise_pipeline_error(*failure);
  } catch (py::error_already_set& error) {
    if (failure->kind != FailureKind::kRemote) publish(error);
    if (signal.has_value()) throw *signal;
    throw;
  }
}

void PythonRuntime::publish_interrupt(const Failure& failure) {
  try {
    raise_pipeline_error(failure);
  } catch (py::error_already_set& error) {
    publish(error);
  }
}

void PythonRuntime::publish(const py::error_already_set& error) {
  if (!runtime_->has_peers()) return;
  std::string text;
  try {
    text = failure_text(error);
  } catch (const py::error_already_set&) {  // another Ctrl-C, say: the pass must still be watched
    text = R"({"message": "a rank failed", "traceback": "", "rank": null, "stage": null, )"
           R"("microbatch": null, "action": null})";
  }
  const py::gil_scoped_release no_gil;  // a round trip to the store
  runtime_->publish(text);
}

py::object PythonRuntime::losses() const {
  std::vector<at::Tensor> losses;
  if (const auto last = stages_.find(num_stages_ - 1); last != stages_.end()) {
    for (const at::Tensor& loss : last->second->losses()) losses.push_back(loss.reshape({}));
  } else if (runtime_ != nullptr && !runtime_->agreed().empty()) {
    const auto& agreed = runtime_->agreed();
    const auto options =
        at::TensorOptions().dtype(static_cast<at::ScalarType>(static_cast<int>(agreed.front())));
    for (auto value = agreed.end() - num_microbatches_; value != agreed.end(); ++value) {
      losses.push_back(at::full({}, *value, options));
    }
  }
  return losses.empty() ? py::object(py::none()) : py::object(py::cast(at::stack(losses)));
}

std::vector<double> PythonRuntime::loss_weights() const {
  const auto last = stages_.find(num_stages_ - 1);
  if (last != stages_.end()) return last->second->loss_weights();
  const auto& agreed = runtime_->agreed();
  return {agreed.begin() + 1, agreed.end() - num_microbatches_};
}

py::object PythonRuntime::outputs() {
  const auto last = bodies_.find(num_stages_ - 1);
  return last == bodies_.end() ? py::object(py::none())
                               : py::object(py::cast(last->second->take_outputs()));
}

}  // namespace pipert

#include "bindings/python_runtime.h"

#include <unistd.h>

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <shared_mutex>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "bindings/batch.h"
#include "bindings/native_body.h"
#include "bindings/python_body.h"
#include "bindings/python_failure.h"
#include "bindings/python_tree.h"

namespace py = pybind11;

namespace pipert {
namespace {

// How long the caller sleeps between two looks at signals, time limits and other processes.
constexpr std::chrono::milliseconds kWatchEvery{20};

std::unique_ptr<BatchBody> make_body(StagePosition position, const PythonStage& stage,
                                     py::object loss_fn) {
  if (stage.is_native)
    return std::make_unique<NativeBody>(position, stage.callable, stage.spread, std::move(loss_fn));
  return std::make_unique<PythonBody>(position, stage.callable, stage.spread, std::move(loss_fn));
}

// Held shared by each pass of any pipeline, exclusively by exports.
std::shared_mutex& passes() {
  static std::shared_mutex mutex;
  return mutex;
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
                             py::object loss_fn, ExternalChannels external, double timeout_s,
                             int intra_op_threads, int spin_us, bool share_losses) {
  process_ = getpid();
  if (ranks.empty()) throw ValueError("a pipeline needs at least one rank in this process");
  num_stages_ = ranks.front().training.num_stages;
  num_microbatches_ = ranks.front().training.num_microbatches;
  std::map<StageIndex, std::unique_ptr<ModuleStage>> built;
  for (const PythonStage& stage : stages) {
    const StagePosition position{stage.stage, num_stages_};
    auto body = make_body(position, stage, position.is_last() ? loss_fn : py::object(py::none()));
    bodies_[stage.stage] = body.get();
    keywords_[stage.stage] = stage.keywords;
    built[stage.stage] = std::make_unique<ModuleStage>(position, num_microbatches_, std::move(body),
                                                       /*shares_gil=*/ranks.size() > 1);
    stages_[stage.stage] = built[stage.stage].get();
  }
  std::vector<RankSpec> specs(ranks.size());
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    specs[i].training = std::move(ranks[i].training);
    specs[i].evaluation = std::move(ranks[i].evaluation);
    specs[i].device = ranks[i].device;
    for (const Instruction& instruction : specs[i].training.instructions) {
      const auto* run = std::get_if<Run>(&instruction.op);
      if (run == nullptr || !built.contains(run->action.stage)) continue;
      specs[i].resources.stages[run->action.stage] = std::move(built[run->action.stage]);
      built.erase(run->action.stage);
    }
  }
  connect(specs, external, spin_us);
  RuntimeOptions options;
  options.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_s * 1000.0));
  options.intra_op_threads = intra_op_threads;
  options.hooks = threads_.hooks();
  {
    const py::gil_scoped_release no_gil;  // where a thread can't start, those that did are joined
    runtime_ = std::make_unique<PipelineRuntime>(std::move(specs), std::move(external.agreement),
                                                 std::move(external.board), std::move(options));
  }
  runtime_->set_share_losses(share_losses);
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
  const BatchShares shares(arguments, num_microbatches_, bodies_.contains(0),
                           bodies_.contains(num_stages_ - 1));
  for (auto& [stage, body] : bodies_) {
    BodyBatch batch;
    const bool is_last = stage == num_stages_ - 1;
    const bool flat = body->wants_flat();
    if (stage == 0) batch.args = shares.args(flat);
    if (is_last) batch.targets = shares.targets(flat);
    batch.kwargs = shares.kwargs(keywords_.at(stage), flat);
    batch.loss_kwargs = shares.loss_kwargs(flat);
    batch.compute_loss = arguments.compute_loss;
    batch.keep_outputs = arguments.keep_outputs;
    body->set_batch(std::move(batch));
    stages_.at(stage)->begin(stage == 0 || is_last ? shares.weights() : std::vector<double>(),
                             shares.rows());
    if (flat) held_ = arguments;
  }
  // An export changes what all of torch does in this process: it waits for another time if a pass
  // of another pipeline runs.
  const std::unique_lock exporting(passes(), std::try_to_lock);
  for (auto& [stage, body] : bodies_) body->prepare(exporting.owns_lock());
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
  held_.reset();
}

void PythonRuntime::step(StepArguments arguments) {
  runtime();
  if (running_)
    throw ValueError("the pipeline is running a step: it runs one at a time, for one thread");
  try {
    set_batches(arguments);
  } catch (...) {
    clear_batches();
    throw;
  }
  const Pass pass{.epoch = epoch_++, .training = arguments.training};
  arguments = {};  // the bodies hold the pieces; nobody shall hold the whole
  run(pass);
}

void PythonRuntime::run(const Pass& pass) {
  const Running running(running_);
  std::shared_lock not_exporting(passes(), std::defer_lock);
  {
    const py::gil_scoped_release no_gil;  // the first thing that a worker wants is the GIL
    not_exporting.lock();
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

std::map<StageIndex, std::string> PythonRuntime::stage_kinds() const {
  std::map<StageIndex, std::string> kinds;
  for (const auto& [stage, body] : bodies_) kinds[stage] = body->kind();
  return kinds;
}

std::optional<std::string> PythonRuntime::loss_kind() const {
  const auto last = bodies_.find(num_stages_ - 1);
  if (last == bodies_.end()) return std::nullopt;
  return last->second->loss_kind();
}

}  // namespace pipert

#include "bindings/python_runtime.h"

#include <unistd.h>

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "bindings/batch.h"
#include "bindings/native_body.h"
#include "bindings/python_body.h"
#include "bindings/python_failure.h"
#include "bindings/python_overlap.h"
#include "bindings/python_tree.h"
#include "bindings/saved_tensor_hooks.h"
#include "stage/recorded_stage.h"

namespace py = pybind11;

namespace pipert {
namespace {

// How long the caller sleeps between two looks at signals, time limits and other processes.
constexpr std::chrono::milliseconds kWatchEvery{20};

std::unique_ptr<BatchBody> make_body(StagePosition position, const PythonStage& stage,
                                     py::object loss_fn) {
  if (stage.is_native) return std::make_unique<NativeBody>(position, stage, std::move(loss_fn));
  return std::make_unique<PythonBody>(position, stage, std::move(loss_fn));
}

// Held shared by each pass of any pipeline, exclusively by exports.
std::shared_mutex& passes() {
  static std::shared_mutex mutex;
  return mutex;
}

// Whether this thread looks at modules, or exports them, before a pass: their code may not run a
// pass of another pipeline, which would wait for that.
thread_local bool is_preparing = false;

// Says that something is running while it lives. A pass: guarded by the GIL.
class Running {
 public:
  explicit Running(bool& flag) : flag_(flag) { flag_ = true; }
  ~Running() { flag_ = false; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  bool& flag_;
};

py::dict dict_of(const Metrics& metrics) {
  py::dict result;
  for (const auto& [name, number] : metrics) result[py::str(name)] = py::cast(number);
  return result;
}

// Copies of the entries of `recorded` whose microbatches `own` lacks.
void take_missing(py::dict& own, const py::object& recorded) {
  for (const auto& [microbatch, value] : py::reinterpret_borrow<py::dict>(recorded)) {
    if (!own.contains(microbatch)) own[microbatch] = copy_containers(value, true);
  }
}

void refuse_in_export() {
  if (is_preparing) throw ValueError("it runs another pipeline");
}

}  // namespace

PythonRuntime::PythonRuntime(const std::vector<PythonStage>& stages, std::vector<PythonRank> ranks,
                             py::object loss_fn, const py::object& overlap_fn,
                             ExternalChannels external, PythonOptions given) {
  process_ = getpid();
  if (ranks.empty()) throw ValueError("a pipeline needs at least one rank in this process");
  num_microbatches_ = ranks.front().training.num_microbatches;
  std::map<StageIndex, std::unique_ptr<Stage>> built;
  recorder_ = std::move(given.recorder);
  for (const PythonStage& stage : stages) {
    const StagePosition position{stage.stage, stage.is_first, stage.is_last};
    positions_[stage.stage] = position;
    runs_[stage.stage].resize(as_index(num_microbatches_));
    auto body = make_body(position, stage, position.is_last ? loss_fn : py::object(py::none()));
    bodies_[stage.stage] = body.get();
    keywords_[stage.stage] = stage.keywords;
    auto module = std::make_unique<ModuleStage>(position, num_microbatches_, std::move(body),
                                                /*shares_gil=*/ranks.size() > 1);
    module->set_saving(&save_into);
    stages_[stage.stage] = module.get();
    if (recorder_ != nullptr) {
      built[stage.stage] = std::make_unique<RecordedStage>(std::move(module), recorder_);
    } else {
      built[stage.stage] = std::move(module);
    }
    run_stages_[stage.stage] = built[stage.stage].get();
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
    specs[i].resources.values = given.values;
    for (const Instruction& instruction : specs[i].training.instructions) {
      const auto* run = std::get_if<Run>(&instruction.op);
      if (run == nullptr) continue;
      runs_[run->action.stage][as_index(run->action.microbatch)] = true;
      if (!built.contains(run->action.stage)) continue;
      specs[i].resources.stages[run->action.stage] = std::move(built[run->action.stage]);
      built.erase(run->action.stage);
    }
    if (overlap_fn.is_none()) continue;
    std::map<StageIndex, py::object> modules;
    for (const PythonStage& stage : stages) modules[stage.stage] = stage.callable;
    specs[i].resources.overlap = std::make_unique<PythonOverlap>(overlap_fn, std::move(modules));
  }
  // Those of a copy of the model that no microbatch passes: they are never run.
  for (auto& [index, stage] : built) specs.front().resources.stages[index] = std::move(stage);
  connect(specs, external,
          {.spin_us = given.spin_us, .network = given.network, .compression = given.compression});
  RuntimeOptions options;
  options.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(given.timeout_s * 1000.0));
  options.intra_op_threads = given.intra_op_threads;
  options.measure_memory = given.measure_memory;
  options.trace = given.trace;
  advise_ = std::move(given.advise);
  specs_ = std::move(given.specs);
  options.random = given.random;
  options.hooks = threads_.hooks();
  {
    const py::gil_scoped_release no_gil;  // where a thread can't start, those that did are joined
    runtime_ = std::make_unique<PipelineRuntime>(std::move(specs), std::move(external),
                                                 std::move(options));
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
  run_stages_.clear();
  const py::gil_scoped_release no_gil;  // workers need it to end, bodies to let go of their modules
  closing.reset();
}

PipelineRuntime& PythonRuntime::runtime() {
  if (runtime_ == nullptr) throw ValueError("the pipeline is closed");
  return *runtime_;
}

void PythonRuntime::set_batches(const StepArguments& arguments) {
  const BatchShares shares(arguments, specs_, num_microbatches_, has_first(), has_last());
  const LossWeights by_rows{.by_microbatch = shares.weights(), .are_chosen = false};
  LossWeights of_loss = by_rows;
  if (arguments.compute_loss) {
    std::vector<double> chosen = chosen_weights(shares);
    if (!chosen.empty()) of_loss = {.by_microbatch = std::move(chosen), .are_chosen = true};
  }
  for (auto& [stage, body] : bodies_) {
    BodyBatch batch;
    const StagePosition& position = positions_.at(stage);
    const bool flat = body->wants_flat();
    if (position.is_first) batch.args = own(stage, shares.args(flat));
    if (position.is_last) batch.targets = own(stage, shares.targets(flat));
    batch.kwargs = own(stage, shares.kwargs(keywords_.at(stage), flat));
    batch.loss_kwargs = shares.loss_kwargs(flat);
    batch.compute_loss = arguments.compute_loss;
    batch.keep_outputs = arguments.keep_outputs;
    batch.keep_pieces = recorder_ != nullptr && recorder_->keeps_batch();
    body->set_batch(std::move(batch));
    run_stages_.at(stage)->begin(position.is_last    ? of_loss
                                 : position.is_first ? by_rows
                                                     : LossWeights(),
                                 shares.rows(position, keywords_.at(stage)));
    if (flat) held_ = arguments;
  }
  // An export changes what all of torch does in this process: it waits for another time if a pass
  // of another pipeline runs.
  const std::unique_lock exporting(passes(), std::try_to_lock);
  const Running preparing(is_preparing);
  for (auto& [stage, body] : bodies_) body->prepare(exporting.owns_lock());
}

std::vector<double> PythonRuntime::chosen_weights(const BatchShares& shares) const {
  for (const auto& [stage, position] : positions_) {
    if (position.is_last) return shares.loss_weights(keywords_.at(stage));
  }
  return {};
}

bool PythonRuntime::has_first() const {
  return std::any_of(positions_.begin(), positions_.end(),
                     [](const auto& entry) { return entry.second.is_first; });
}

bool PythonRuntime::has_last() const {
  return std::any_of(positions_.begin(), positions_.end(),
                     [](const auto& entry) { return entry.second.is_last; });
}

std::vector<BatchPiece> PythonRuntime::own(StageIndex stage, std::vector<BatchPiece> all) const {
  const std::vector<bool>& runs = runs_.at(stage);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!runs[i]) all[i] = {};
  }
  return all;
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

void PythonRuntime::end_trace() {
  const std::int64_t now = now_ns();
  for (const auto& executor : runtime().executors()) executor->complete(now);
}

void PythonRuntime::step(StepArguments arguments, std::int64_t begun_ns) {
  runtime();
  if (running_)
    throw ValueError("the pipeline is running a step: it runs one at a time, for one thread");
  refuse_in_export();
  const Running running(running_);  // an export lets others have the GIL, who might close it
  const auto clearing = c10::make_scope_exit([this] { clear_batches(); });
  set_batches(arguments);
  const Pass pass{.epoch = epoch_++, .training = arguments.training, .step = arguments.step};
  MainGradients main_gradients(std::move(arguments.main_gradients));
  SharedState shared = std::move(arguments.shared);
  for (SharedStage& stage : shared.stages) {
    if (stage.losses_of != nullptr && !arguments.compute_loss) stage.losses_of = nullptr;
  }
  arguments = {};  // the bodies hold the pieces; nobody shall hold the whole
  run([&] { runtime_->start(pass, begun_ns, std::move(shared)); });
  main_gradients.sweep();
}

void PythonRuntime::share_weights(SharedState shared) {
  runtime();
  const Running running(running_);
  run([&] { runtime_->start_sharing(epoch_++, std::move(shared)); });
}

void PythonRuntime::share_gradients(std::vector<TiedWeight> weights) {
  runtime();
  const Running running(running_);
  run([&] { runtime_->start_sharing_gradients(epoch_++, std::move(weights)); });
}

void PythonRuntime::run(const std::function<void()>& start) {
  refuse_in_export();
  std::shared_lock not_exporting(passes(), std::defer_lock);
  {
    const py::gil_scoped_release no_gil;  // the first thing that a worker wants is the GIL
    not_exporting.lock();
    start();
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
  if (!failure.has_value()) return;
  kept();  // nobody will ask for it
  try {
    raise_pipeline_error(*failure, advise_);
  } catch (py::error_already_set& error) {
    if (failure->kind != FailureKind::kRemote) publish(error);
    if (signal.has_value()) throw *signal;
    throw;
  }
}

void PythonRuntime::publish_interrupt(const Failure& failure) {
  try {
    raise_pipeline_error(failure, advise_);
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
  if (has_last()) {
    const Losses known = runtime_ != nullptr ? runtime_->losses() : Losses();
    for (const at::Tensor& loss : known.values) {
      losses.push_back(loss.dim() == 0 ? loss : loss.reshape({}));
    }
    // Copies of the model may have their last stages on several devices.
    for (at::Tensor& loss : losses) {
      if (loss.device() != losses.front().device()) loss = loss.to(losses.front().device());
    }
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
  if (runtime_ == nullptr) return {};
  if (has_last()) return runtime_->losses().weights;
  const auto& agreed = runtime_->agreed();
  return {agreed.begin() + 1, agreed.end() - num_microbatches_};
}

py::tuple PythonRuntime::kept() {
  if (!has_last()) return py::make_tuple(py::none(), py::none());
  py::dict outputs;
  py::dict metrics;
  for (auto& [stage, body] : bodies_) {
    std::vector<py::object> own = body->take_outputs();
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (own[i]) outputs[py::int_(i)] = std::move(own[i]);
    }
    const std::vector<Metrics> numbers = body->take_metrics();
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (!numbers[i].empty()) metrics[py::int_(i)] = dict_of(numbers[i]);
    }
  }
  settle(outputs, metrics);
  return py::make_tuple(outputs, stack_metrics(metrics, num_microbatches_));
}

void PythonRuntime::settle(py::dict& outputs, py::dict& metrics) {
  if (recorder_ == nullptr || recorder_->recording() == nullptr) return;
  std::shared_ptr<void>& kept = recorder_->recording()->outputs;
  if (recorder_->mode() != PassMode::kReplay) {  // some may lie where other recordings write
    kept =
        std::shared_ptr<void>(py::make_tuple(outputs, metrics).release().ptr(), [](void* object) {
          const py::gil_scoped_acquire gil;
          Py_DECREF(static_cast<PyObject*>(object));
        });
    outputs = py::dict();
    metrics = py::dict();
  }
  if (kept == nullptr) return;
  const auto recorded = py::reinterpret_borrow<py::tuple>(static_cast<PyObject*>(kept.get()));
  take_missing(outputs, recorded[0]);
  take_missing(metrics, recorded[1]);
}

std::map<Rank, int> PythonRuntime::peak_activations() {
  std::map<Rank, int> peaks;
  for (const auto& executor : runtime().executors()) {
    peaks[executor->rank()] = executor->log().peak_activations();
  }
  return peaks;
}

std::map<StageIndex, std::string> PythonRuntime::stage_kinds() const {
  std::map<StageIndex, std::string> kinds;
  for (const auto& [stage, body] : bodies_) kinds[stage] = body->kind();
  return kinds;
}

std::optional<std::string> PythonRuntime::loss_kind() const {
  for (const auto& [stage, body] : bodies_) {
    if (positions_.at(stage).is_last) return body->loss_kind();
  }
  return std::nullopt;
}

}  // namespace pipert

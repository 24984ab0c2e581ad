#include "hash_pipeline.h"

#include <algorithm>
#include <array>

#include "check.h"

namespace pipert {
namespace {

// By device; for ever, as blocks belong to them.
const std::array<cuda::Stream, cuda_fake::kNumDevices>& caller_streams() {
  static const auto streams = [] {
    std::array<cuda::Stream, cuda_fake::kNumDevices> made{};
    for (int device = 0; device < cuda_fake::kNumDevices; ++device) {
      cuda_fake::set_current_device(device);
      made[as_index(device)] = cuda::create_stream();
    }
    cuda_fake::set_current_device(0);
    return made;
  }();
  return streams;
}

c10::Device cuda_device(int index) { return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)}; }

template <typename Visit>
void for_each_run(const std::vector<Program>& programs, const Visit& visit) {
  for (const Program& program : programs) {
    for (const Instruction& instruction : program.instructions) {
      if (const auto* run = std::get_if<Run>(&instruction.op)) visit(run->action);
      if (const auto* move = std::get_if<Move>(&instruction.op)) visit(move->action);
    }
  }
}

}  // namespace

HashPrograms lower_for_hashes(const Schedule& schedule, const LowerOptions& options) {
  LowerOptions without_pairs = options;
  without_pairs.joint_pairs = false;
  const Schedule forwards = forward_only(schedule);
  return {schedule.placement, lower(schedule, options), lower(forwards, without_pairs)};
}

HashPipeline::HashPipeline(HashPrograms programs, const HashPipelineOptions& options)
    : programs_(std::move(programs)),
      options_(options),
      plain_(programs_.training, programs_.placement) {
  const Placement& placement = programs_.placement;
  first_stages_.resize(as_index(num_microbatches()));
  last_stages_.resize(as_index(num_microbatches()));
  options_.devices.resize(programs_.training.size(), 0);
  for_each_run(programs_.training, [&](const Action& action) {
    if (action.kind != ActionKind::kForward) return;
    if (placement.is_first(action.stage)) first_stages_[as_index(action.microbatch)] = action.stage;
    if (placement.is_last(action.stage)) last_stages_[as_index(action.microbatch)] = action.stage;
  });
  for (int device = 0; device < cuda_fake::kNumDevices; ++device) {
    const cuda::Stream stream = caller_streams()[as_index(device)];
    if (!options_.default_streams)
      streams_.push_back(std::make_unique<cuda_fake::StreamScope>(stream));
  }
  make_weights();
  auto specs = make_ranks();
  ExternalChannels none;
  connect(specs, none, {.spin_us = 0, .network = nullptr, .compression = {}});
  RuntimeOptions runtime;
  runtime.timeout = std::chrono::seconds(30);
  runtime.trace.device_times = options_.device_times;
  runtime_ = std::make_unique<PipelineRuntime>(std::move(specs), std::move(none), runtime);
}

void HashPipeline::make_weights() {
  for (StageIndex stage = 0; stage < programs_.placement.num_stages(); ++stage) {
    const c10::Device device = cuda_device(device_of(stage));
    weights_.push_back({make_words(device), make_words(device)});
    launch(Kernel::kUpdate, hash_tag(stage, -1), weights_.back().weight);
    launch(Kernel::kZero, 0, weights_.back().gradient);
  }
}

std::vector<RankSpec> HashPipeline::make_ranks() {
  std::vector<RankSpec> specs(programs_.training.size());
  stages_.resize(weights_.size());
  for (std::size_t rank = 0; rank < specs.size(); ++rank) {
    specs[rank].training = programs_.training[rank];
    specs[rank].evaluation = programs_.evaluation[rank];
    specs[rank].device = cuda_device(options_.devices[rank]);
    for (const StageIndex stage : programs_.placement.stages_of(static_cast<Rank>(rank))) {
      auto made = std::make_unique<HashStage>(stage, programs_.placement, num_microbatches(),
                                              batch_, weights_[as_index(stage)]);
      stages_[as_index(stage)] = made.get();
      specs[rank].resources.stages[stage] = std::move(made);
    }
  }
  return specs;
}

HashPipeline::~HashPipeline() {
  runtime_.reset();
  num_wrong();  // the streams write to results
  for (const HashWeights& weights : weights_) CHECK(weights.weight.use_count() == 1);
}

int HashPipeline::device_of(StageIndex stage) const {
  return options_.devices[as_index(programs_.placement.rank_of(stage))];
}

void HashPipeline::run(bool training) {
  make_batch(++pass_);
  const auto failure = run_pass(training, std::nullopt);
  CHECK(!failure.has_value());
  end(training, failure);
}

void HashPipeline::run_failing(const Action& failing) {
  make_batch(++pass_);
  stages_[as_index(failing.stage)]->set_failing(failing);
  const auto failure = run_pass(true, std::nullopt);
  stages_[as_index(failing.stage)]->set_failing(std::nullopt);
  CHECK(failure.has_value() && failure->action == failing);
  end(true, failure);
}

void HashPipeline::run_interrupted(std::chrono::microseconds after) {
  make_batch(++pass_);
  end(true, run_pass(true, after));
}

// The first microbatch comes last, and is read first.
void HashPipeline::make_batch(std::uint64_t pass) {
  batch_.inputs.assign(first_stages_.size(), {});
  batch_.targets.assign(first_stages_.size(), {});
  const auto fill = [&](Kernel kernel, Microbatch microbatch, StageIndex stage) {
    const at::Tensor words = make_words(cuda_device(device_of(stage)));
    launch(kernel, mix(pass, static_cast<Word>(microbatch)), words);
    return words;
  };
  for (Microbatch i = num_microbatches() - 1; i >= 0; --i) {
    batch_.targets[as_index(i)] = fill(Kernel::kTarget, i, last_stages_[as_index(i)]);
    batch_.inputs[as_index(i)] = fill(Kernel::kBatch, i, first_stages_[as_index(i)]);
  }
}

std::optional<Failure> HashPipeline::run_pass(bool training,
                                              std::optional<std::chrono::microseconds> limit) {
  for (HashStage* stage : stages_) stage->begin({}, 0);
  Pass pass;
  pass.epoch = static_cast<std::int64_t>(pass_);
  pass.training = training;
  runtime_->start(pass, now_ns());
  if (limit.has_value()) {
    std::this_thread::sleep_for(*limit);
    runtime_->interrupt({.kind = FailureKind::kInterrupted,
                         .rank = 0,
                         .action = {},
                         .message = "interrupted",
                         .cause = nullptr});
  }
  while (!runtime_->watch(std::chrono::milliseconds(20))) {
  }
  auto failure = runtime_->finish();
  CHECK(runtime_->usable());
  return failure;
}

void HashPipeline::end(bool training, const std::optional<Failure>& failure) {
  if (failure.has_value()) {
    CHECK(failure->kind == FailureKind::kAction || failure->kind == FailureKind::kInterrupted);
    for (HashStage* stage : stages_) CHECK(stage->num_in_flight() == 0);
    for (const HashWeights& weights : weights_) launch(Kernel::kZero, 0, weights.gradient);
    return;
  }
  if (options_.device_times) check_times();
  for (const auto& [where, words] : plain_.run(pass_, training))
    expect(words, stages_[as_index(where.first)]->losses()[as_index(where.second)]);
  if (!training) return;
  for (std::size_t stage = 0; stage < weights_.size(); ++stage) {
    const HashWeights& weights = weights_[stage];
    expect(plain_.gradients()[stage], weights.gradient);
    launch(Kernel::kUpdate, pass_, weights.weight, weights.weight, weights.gradient);
    launch(Kernel::kZero, 0, weights.gradient);
  }
  plain_.update(pass_);
}

void HashPipeline::expect(const Words& expected, const at::Tensor& actual) {
  Result& result = results_.emplace_back(Result{expected, {}});
  launch_to(result.actual.data(), actual.device().index(), Kernel::kCopy, 0, actual);
}

// Each action ends after it began, and begins after the one before has ended.
void HashPipeline::check_times() const {
  for (const auto& executor : runtime_->executors()) {
    CHECK(executor->log().times_device());
    const PassTrace trace = executor->traced(0);
    const Program& program = executor->program(trace.training);
    std::int64_t before = 0;
    for (std::size_t i = 0; i < trace.num_events; ++i) {
      if (!std::holds_alternative<Run>(program.instructions[i].op)) continue;
      CHECK(before <= trace.events[i].started_ns);
      CHECK(trace.events[i].started_ns <= trace.events[i].ended_ns);
      before = trace.events[i].ended_ns;
    }
  }
}

int HashPipeline::num_wrong() {
  for (int device = 0; device < cuda_fake::kNumDevices; ++device)
    cuda::synchronize(cuda_fake::current_stream(device));
  return static_cast<int>(std::count_if(results_.begin(), results_.end(), [](const Result& result) {
    return result.expected != result.actual;
  }));
}

std::vector<Action> HashPipeline::actions() const {
  std::vector<Action> actions;
  for_each_run(programs_.training, [&](const Action& action) { actions.push_back(action); });
  return actions;
}

bool HashPipeline::is_of_caller(cuda::Stream stream) {
  for (int device = 0; device < cuda_fake::kNumDevices; ++device) {
    if (stream == caller_streams()[as_index(device)]) return true;
    if (stream == cuda_fake::resolve(nullptr, device)) return true;
  }
  return false;
}

}  // namespace pipert

#include "runtime/rehearsal.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "plan/prove.h"
#include "runtime/blank_stage.h"
#include "runtime/pipeline_runtime.h"
#include "transport/bounded_channel.h"

namespace pipert {
namespace {

// How long the caller sleeps between two looks at whether anything moves.
constexpr std::chrono::milliseconds kWatchEvery{1};

using Logs = std::vector<std::vector<Action>>;

std::vector<RankSpec> make_specs(const std::vector<Program>& programs, const Placement& placement,
                                 Logs& logs) {
  std::vector<RankSpec> specs(programs.size());
  for (std::size_t i = 0; i < programs.size(); ++i) {
    specs[i].training = programs[i];
    specs[i].evaluation = programs[i];
    for (const StageIndex stage : placement.stages_of(programs[i].rank)) {
      specs[i].resources.stages[stage] =
          std::make_unique<BlankStage>(stage, placement.is_first(stage), placement.is_last(stage),
                                       programs[i].num_microbatches, logs[i]);
    }
  }
  return specs;
}

void bound_channels(std::vector<RankSpec>& specs, int capacity) {
  for (RankSpec& source : specs) {
    for (auto& [edge, sender] : source.resources.senders) {
      auto& receiver = specs[as_index(edge.destination)].resources.receivers.at(edge);
      BoundedChannel bounded = bound_channel(std::move(sender), std::move(receiver), capacity);
      sender = std::move(bounded.sender);
      receiver = std::move(bounded.receiver);
    }
  }
}

std::int64_t num_moves(const PipelineRuntime& runtime) {
  std::int64_t moves = 0;
  for (const auto& executor : runtime.executors()) moves += executor->progress().instruction.load();
  return moves;
}

// Ends the pass if nothing moves for `limit`.
void watch(PipelineRuntime& runtime, std::chrono::milliseconds limit) {
  auto since = std::chrono::steady_clock::now();
  std::int64_t moves = num_moves(runtime);
  while (!runtime.watch(kWatchEvery)) {
    const auto now = std::chrono::steady_clock::now();
    if (const std::int64_t current = num_moves(runtime); current != moves) {
      moves = current;
      since = now;
    } else if (now - since >= limit) {
      runtime.interrupt({.kind = FailureKind::kTimeout,
                         .rank = runtime.executors().front()->rank(),
                         .action = {},
                         .message = concat("nothing moved for ", limit.count(), " ms"),
                         .cause = nullptr});
    }
  }
}

// Which of its Runs and Moves the rank was at; nothing if it came to the end.
std::optional<int> stalled_at(const Executor& executor, const std::vector<Action>& log) {
  const auto& instructions = executor.program(true).instructions;
  int num_runs = 0;
  for (const Instruction& instruction : instructions) {
    const bool is_move = std::holds_alternative<Move>(instruction.op);
    num_runs += is_move || std::holds_alternative<Run>(instruction.op) ? 1 : 0;
  }
  const int num_done = static_cast<int>(log.size());
  const bool at_end = executor.log().trace().current()->num_events == instructions.size();
  if (at_end && num_done == num_runs) return std::nullopt;
  const auto at = as_index(std::max(0, executor.progress().instruction.load()));
  const bool sends = std::holds_alternative<Send>(instructions[at].op);
  return sends ? num_done - 1 : num_done;
}

std::string message_of(const Failure& failure) {
  try {
    if (failure.cause != nullptr) std::rethrow_exception(failure.cause);
  } catch (const std::exception& error) {
    return concat("rank ", failure.rank, ": ", error.what());
  }
  return failure.message;
}

std::int64_t duration_ns(const PipelineRuntime& runtime) {
  std::int64_t start = std::numeric_limits<std::int64_t>::max();
  std::int64_t end = 0;
  for (const auto& executor : runtime.executors()) {
    const PassTrace& trace = *executor->log().trace().current();
    if (trace.num_events > 0) start = std::min(start, trace.events.front().issued_ns);
    end = std::max(end, trace.done_ns);
  }
  return std::max<std::int64_t>(0, end - start);
}

void run_pass(PipelineRuntime& runtime, int pass, const RehearsalOptions& options,
              Rehearsal& result) {
  for (const auto& executor : runtime.executors()) {
    for (const auto& [index, stage] : executor->resources().stages) stage->begin({}, 0);
  }
  runtime.start({.epoch = pass, .training = options.training}, now_ns());
  watch(runtime, options.limit);
  // Before finish(), which makes all ready for another pass.
  std::vector<std::optional<int>> places;
  for (std::size_t rank = 0; rank < result.actions.size(); ++rank) {
    places.push_back(stalled_at(*runtime.executors()[rank], result.actions[rank]));
  }
  const std::int64_t spent = duration_ns(runtime);
  const auto failure = runtime.finish();
  if (!failure.has_value()) {
    result.pass_ns.push_back(spent);
    return;
  }
  result.message = message_of(*failure);
  result.ending = failure->kind == FailureKind::kTimeout ? Ending::kStalled : Ending::kFailed;
  if (result.ending == Ending::kStalled) result.stalled_at = std::move(places);
}

// The passes. `external`: null and empty where all ranks are in this process.
Rehearsal rehearse_here(const std::vector<Program>& programs, const Placement& placement,
                        ExternalChannels external, const RehearsalOptions& options) {
  Rehearsal result;
  result.actions.resize(programs.size());
  result.stalled_at.resize(programs.size());
  auto specs = make_specs(programs, placement, result.actions);
  connect(specs, external, {.spin_us = options.spin_us, .network = nullptr, .compression = {}});
  if (options.capacity.has_value()) bound_channels(specs, *options.capacity);
  std::optional<PipelineRuntime> runtime;
  try {
    runtime.emplace(std::move(specs), std::move(external), RuntimeOptions());
  } catch (const ValueError& error) {
    result.ending = Ending::kRefused;
    result.message = error.what();
    return result;
  }
  for (int pass = 0; pass < options.num_passes && result.ending == Ending::kCompleted; ++pass) {
    for (auto& actions : result.actions) actions.clear();
    run_pass(*runtime, pass, options, result);
  }
  return result;
}

}  // namespace

Rehearsal rehearse(const std::vector<Program>& programs, const Placement& placement,
                   const RehearsalOptions& options) {
  if (as_index(placement.num_ranks()) != programs.size() || !are_all_ranks(programs)) {
    std::string got;
    for (const Program& program : programs) got += concat(got.empty() ? "" : ", ", program.rank);
    throw ValueError(concat("expected one program for each of the ", placement.num_ranks(),
                            " ranks of the placement, in rank order, got those of ranks [", got,
                            ']'));
  }
  return rehearse_here(programs, placement, ExternalChannels(), options);
}

Rehearsal rehearse_rank(const Program& program, const Placement& placement,
                        ExternalChannels channels, const RehearsalOptions& options) {
  if (program.num_ranks != placement.num_ranks()) {
    throw ValueError(concat("expected a program for one of the ", placement.num_ranks(),
                            " ranks of the placement, got one for ", program.num_ranks, " ranks"));
  }
  return rehearse_here({program}, placement, std::move(channels), options);
}

std::string_view ending_name(Ending ending) {
  switch (ending) {
    case Ending::kCompleted:
      return "completed";
    case Ending::kStalled:
      return "stalled";
    case Ending::kFailed:
      return "failed";
    case Ending::kRefused:
      return "refused";
  }
  return "completed";
}

}  // namespace pipert

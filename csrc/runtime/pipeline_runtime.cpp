#include "runtime/pipeline_runtime.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <new>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "cuda/cuda_api.h"
#include "random/rank_generator.h"
#include "runtime/autocast_cache.h"
#include "runtime/intra_op.h"
#include "runtime/thread_state.h"
#include "shm/connection_lost.h"

namespace pipert {
namespace {

// Other processes are asked only while some rank has been waiting for this long: a healthy step
// never asks.
constexpr std::int64_t kQuietNs = 100'000'000;
constexpr std::int64_t kPollEveryNs = 200'000'000;
constexpr std::chrono::milliseconds kReasonPatience{400};
constexpr std::chrono::milliseconds kGlance{10};  // the caller has more to watch than the store

// Whether this rank found itself that a message was wrong, that there is no memory for it, that its
// device refuses, or that a process is gone: then it has nobody's reason to wait for. Else a
// connection was lost, perhaps because a peer failed, which will say why. Of those, gloo's are no
// errors of torch's.
bool is_own_finding(const Failure& failure) {
  try {
    if (failure.cause != nullptr) std::rethrow_exception(failure.cause);
  } catch (const c10::DistError&) {
    return false;
  } catch (const c10::Error&) {
    return true;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (const ValueError&) {
    return true;
  } catch (const ProcessGone&) {
    return true;
  } catch (const CudaError&) {
    return true;
  } catch (...) {
  }
  return false;
}

}  // namespace

PipelineRuntime::PipelineRuntime(std::vector<RankSpec> ranks, ExternalChannels external,
                                 RuntimeOptions options)
    : spread_(external.cores.empty()
                  ? CoreSpread(static_cast<int>(ranks.size()))
                  : CoreSpread(std::move(external.cores), ranks.front().training.rank)),
      copies_(std::move(external.copies)),
      ties_(std::move(external.ties)),
      agreement_(std::move(external.agreement)),
      board_(std::move(external.board)),
      options_(std::move(options)) {
  for (RankSpec& rank : ranks) {
    const int seat = static_cast<int>(executors_.size());
    executors_.push_back(std::make_unique<Executor>(
        std::move(rank.resources), std::move(rank.training), std::move(rank.evaluation),
        rank.device, failure_, spread_, seat, options_.trace));
    if (options_.measure_memory) executors_.back()->measure_memory();
  }
  if (copies_ != nullptr) exchanges_.push_back(copies_.get());
  if (ties_ != nullptr) exchanges_.push_back(ties_.get());
  intercept_draws();
  WorkerHooks hooks = options_.hooks;
  hooks.on_start = [this, start = std::move(hooks.on_start)](int worker) {
    set_thread_intra_op_threads(options_.intra_op_threads);
    if (start) start(worker);
  };
  workers_ = std::make_unique<Workers>(static_cast<int>(executors_.size()), std::move(hooks));
}

PipelineRuntime::~PipelineRuntime() { abort_all(); }

void PipelineRuntime::start(Pass pass, std::int64_t begun_ns, SharedState shared) {
  pass.is_keyed = options_.random.seed.has_value();
  begin_exchanges(pass.training ? ExchangeKind::kTraining : ExchangeKind::kEvaluation, pass.epoch,
                  std::move(shared));
  for (auto& executor : executors_) executor->prepare(pass, begun_ns);
  start_workers(pass);
}

void PipelineRuntime::start_sharing(std::int64_t epoch, SharedState shared) {
  begin_exchanges(ExchangeKind::kWeights, epoch, std::move(shared));
  start_workers(std::nullopt);
}

void PipelineRuntime::start_sharing_gradients(std::int64_t epoch, std::vector<TiedWeight> weights) {
  // What others than the owner have is put aside, and they add nothing to its sum.
  begin_exchanges(ExchangeKind::kTraining, epoch, {.stages = {}, .weights = std::move(weights)});
  start_workers(std::nullopt);
}

void PipelineRuntime::begin_exchanges(ExchangeKind kind, std::int64_t epoch, SharedState shared) {
  if (copies_ != nullptr) copies_->begin(kind, epoch, std::move(shared.stages));
  if (ties_ != nullptr) ties_->begin(kind, epoch, std::move(shared.weights));
}

void PipelineRuntime::start_workers(const std::optional<Pass>& pass) {
  agreed_.clear();
  last_poll_ns_ = now_ns();
  auto state = std::make_shared<const ThreadState>(executors_.front()->device());
  auto seed = std::make_shared<PassSeed>(options_.random.seed);
  AutocastCache::clear();
  workers_->start([this, pass, state = std::move(state), seed = std::move(seed)](int worker) {
    const ThreadStateGuard guard(*state);
    spread_.enter(worker);
    const AutocastCache cache;
    Executor& executor = *executors_[as_index(worker)];
    std::optional<RankGenerator> generator;
    if (pass.has_value() && has_rank_generators())
      generator.emplace(seed, executor.device(), options_.random.owner);
    run_rank(executor, pass);
    spread_.leave(worker);
  });
}

void PipelineRuntime::run_rank(Executor& executor, const std::optional<Pass>& pass) {
  const auto exchange = [&](Lane& lane) { return run_exchanges(lane, executor.rank()); };
  const bool completed = (pass.has_value() ? executor.run(*pass, exchange)
                                           : exchange(*current_lane(executor.device()))) &&
                         (agreement_ == nullptr || agree(executor));
  // Either this rank failed, or it was told that another did: nobody shall wait for it.
  if (!completed) abort_all();
}

bool PipelineRuntime::run_exchanges(Lane& lane, Rank rank) {
  for (Exchange* exchange : exchanges_) {
    try {
      if (!exchange->run(lane)) return false;
    } catch (...) {
      failure_.set({.kind = FailureKind::kTransfer,
                    .rank = rank,
                    .action = {},
                    .message = concat("while it ", exchange->doing()),
                    .cause = std::current_exception()});
      return false;
    }
  }
  return true;
}

bool PipelineRuntime::agree(Executor& executor) {
  try {
    executor.join();  // the losses are read on this thread's stream
    agreed_ = own_losses();
    const Waiting waiting(agreement_progress_, now_ns());
    return agreement_->agree(agreed_);
  } catch (...) {
    failure_.set({.kind = FailureKind::kTransfer,
                  .rank = executor.rank(),
                  .action = {},
                  .message = concat("while it waited for rank ", agreement_->awaited_rank(),
                                    " to end the step"),
                  .cause = std::current_exception()});
    return false;
  }
}

Losses PipelineRuntime::losses() const {
  Losses losses;
  for (const auto& executor : executors_) losses.merge(executor->losses());
  if (copies_ != nullptr) losses.merge(copies_->received());
  return losses;
}

std::vector<double> PipelineRuntime::own_losses() const {
  std::vector<double> values;
  if (!share_losses_) return values;
  const Losses losses = this->losses();
  if (losses.empty()) return values;
  values.push_back(static_cast<double>(losses.values.front().scalar_type()));
  for (const double weight : losses.weights) values.push_back(weight);
  for (const at::Tensor& loss : losses.values) values.push_back(loss.item<double>());
  return values;
}

void PipelineRuntime::abort_all() noexcept {
  for (auto& executor : executors_) executor->abort();
  for (Exchange* exchange : exchanges_) exchange->abort();
  if (agreement_ != nullptr) agreement_->abort();
}

bool PipelineRuntime::watch(std::chrono::milliseconds limit) {
  if (workers_->wait(limit)) return true;
  if (!failure_.raised()) check_time_limit();
  if (!failure_.raised()) check_other_processes();
  if (failure_.raised()) abort_all();
  return false;
}

void PipelineRuntime::interrupt(Failure failure) {
  failure_.set(std::move(failure));
  abort_all();
}

void PipelineRuntime::check_time_limit() {
  const std::int64_t now = now_ns();
  const std::int64_t limit_ns = std::chrono::nanoseconds(options_.timeout).count();
  const auto is_late = [&](const Progress& progress) {
    const std::int64_t since = progress.waiting_since_ns.load(std::memory_order_relaxed);
    return since != 0 && now - since > limit_ns;
  };
  bool is_end_late = is_late(agreement_progress_);
  for (const Exchange* exchange : exchanges_) is_end_late |= is_late(exchange->progress());
  for (const auto& executor : executors_) {
    if (!is_late(executor->progress()) && !is_end_late) continue;
    failure_.set({.kind = FailureKind::kTimeout,
                  .rank = executor->rank(),
                  .action = {},
                  .message = concat("no progress for ",
                                    static_cast<double>(options_.timeout.count()) / 1000.0,
                                    " s: ", describe_waits()),
                  .cause = nullptr});
    return;
  }
}

std::string PipelineRuntime::describe_waits() const {
  std::string text;
  for (const auto& executor : executors_) {
    const Progress& progress = executor->progress();
    const std::int32_t at = progress.instruction.load(std::memory_order_relaxed);
    const auto waiting = std::find_if(exchanges_.begin(), exchanges_.end(), [](Exchange* exchange) {
      return exchange->progress().waiting_since_ns.load() != 0;
    });
    if (!text.empty()) text += "; ";
    text += concat("rank ", executor->rank());
    if (agreement_progress_.waiting_since_ns.load() != 0) {
      text +=
          concat(" is done and waits for rank ", agreement_->awaited_rank(), " to end the step");
    } else if (waiting != exchanges_.end()) {
      text += concat(" is done and waits for ", (*waiting)->awaited());
    } else if (at < 0) {
      text += " has not begun";
    } else {
      const bool waits = progress.waiting_since_ns.load() != 0;
      const Program& program = executor->program(executor->last_was_training());
      text += waits ? concat(" waits ", describe_wait(program, as_index(at)))
                    : concat(" is at ", to_string(program, program.instructions[as_index(at)]));
    }
  }
  return text;
}

void PipelineRuntime::check_other_processes() {
  if (board_ == nullptr) return;
  const std::int64_t now = now_ns();
  if (now - last_poll_ns_ < kPollEveryNs) return;
  bool is_quiet = false;
  const auto look = [&](const Progress& progress) {
    const std::int64_t since = progress.waiting_since_ns.load(std::memory_order_relaxed);
    is_quiet |= since != 0 && now - since > kQuietNs;
  };
  for (const auto& executor : executors_) look(executor->progress());
  look(agreement_progress_);
  for (const Exchange* exchange : exchanges_) look(exchange->progress());
  if (!is_quiet) return;
  last_poll_ns_ = now;
  if (auto text = board_->poll(kGlance)) {
    failure_.set({.kind = FailureKind::kRemote,
                  .rank = executors_.front()->rank(),
                  .action = {},
                  .message = std::move(*text),
                  .cause = nullptr});
  }
}

// A peer that failed closes its connections at once, and says why a moment later; one that died
// says nothing.
std::optional<std::string> PipelineRuntime::wait_for_reason() {
  const auto end = std::chrono::steady_clock::now() + kReasonPatience;
  while (true) {
    const auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(
        end - std::chrono::steady_clock::now());
    if (rest.count() <= 0) return std::nullopt;
    if (auto text = board_->poll(rest)) return text;
    std::this_thread::sleep_for(kGlance);
  }
}

std::optional<Failure> PipelineRuntime::finish() {
  AutocastCache::clear();
  std::optional<Failure> failure = failure_.take();
  for (Exchange* exchange : exchanges_) exchange->finish();
  if (!failure.has_value()) {
    for (auto& executor : executors_) executor->join();
    const std::int64_t now = now_ns();
    for (auto& executor : executors_) executor->complete(now);
    return failure;
  }
  // What the caller does next, to gradients say, comes after what the lanes may still do.
  for (auto& executor : executors_) executor->join_all();
  if (failure->kind == FailureKind::kTransfer && board_ != nullptr && !is_own_finding(*failure)) {
    if (auto text = wait_for_reason()) {
      *failure = {.kind = FailureKind::kRemote,
                  .rank = failure->rank,
                  .action = {},
                  .message = std::move(*text),
                  .cause = nullptr};
    }
  }
  for (auto& executor : executors_) usable_ = executor->reset() && usable_;
  for (Exchange* exchange : exchanges_) usable_ = exchange->reset() && usable_;
  if (agreement_ != nullptr) usable_ = agreement_->reset() && usable_;
  return failure;
}

}  // namespace pipert

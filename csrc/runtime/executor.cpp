#include "runtime/executor.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "runtime/device_axis.h"
#include "runtime/joint_pair.h"
#include "stage/microbatch_scope.h"

namespace pipert {
namespace {

LaneTable make_lanes(const Program& training, const Program& evaluation,
                     const c10::Device& device) {
  LaneTable lanes;
  for (const Program* program : {&training, &evaluation}) {
    for (const LaneSpec& lane : program->lanes) {
      auto& entry = lanes[{lane.kind, lane.edge}];
      const bool is_compute = lane.kind == LaneKind::kCompute;
      if (!entry)
        entry = make_lane(device, is_compute ? LanePriority::kCompute : LanePriority::kTransfer);
    }
  }
  return lanes;
}

}  // namespace

Executor::Executor(RankResources resources, Program training, Program evaluation,
                   const c10::Device& device, FirstFailure& failure, CoreSpread& spread, int seat,
                   const TraceOptions& trace)
    : resources_(std::move(resources)),
      lanes_(make_lanes(training, evaluation, device)),
      compute_lane_(*lanes_.at({LaneKind::kCompute, training.lanes[kComputeLane].edge})),
      training_(decode(std::move(training), resources_, lanes_)),
      evaluation_(decode(std::move(evaluation), resources_, lanes_)),
      device_(device),
      failure_(failure),
      spread_(spread),
      seat_(seat),
      values_(resources_.values, training_.program.num_microbatches),
      log_(trace, training_.program, evaluation_.program, device) {}

void Executor::prepare(const Pass& pass, std::int64_t begun_ns) {
  const DecodedProgram& program = decoded(pass);
  const auto begin = [&](auto& ends, const std::map<Edge, int>& counts) {
    for (auto& [edge, end] : ends) {
      const auto count = counts.find(edge);
      end->begin({pass.epoch, pass.training, count == counts.end() ? 0 : count->second});
    }
  };
  begin(resources_.senders, program.num_outgoing);
  begin(resources_.receivers, program.num_incoming);
  held_.resize(program.program.slots.size());
  log_.begin(pass.training, begun_ns);
  last_was_training_ = pass.training;
  failing_.reset();
  progress_.instruction.store(-1, std::memory_order_relaxed);
  if (!compute_lane_.is_asynchronous()) return;
  marks_.resize(as_index(program.program.num_marks));
  const auto caller = current_lane(device_);
  if (entry_ == nullptr) entry_ = caller->make_mark();
  caller->record(*entry_);
}

void Executor::join() {
  if (exit_ != nullptr) current_lane(device_)->wait(*exit_);
}

void Executor::join_all() noexcept {
  if (!compute_lane_.is_asynchronous()) return;
  try {
    const auto caller = current_lane(device_);
    for (const auto& [name, lane] : lanes_) {
      const auto mark = lane->make_mark();
      lane->record(*mark);
      caller->wait(*mark);
    }
  } catch (...) {  // a device that has failed does nothing more, and says so to the next one anyway
  }
}

PassTrace Executor::traced(int ago) const {
  const PassTrace& host = log_.trace().last(ago);
  if (!log_.times_device()) return host;
  return on_device_axis(host, program(host.training), log_.spans(ago));
}

bool Executor::run(const Pass& pass, const std::function<bool(Lane&)>& after) {
  const auto current = compute_lane_.make_current();
  if (entry_ != nullptr) compute_lane_.wait(*entry_);
  log_.enter();
  bool completed = true;
  try {
    const auto& ops = decoded(pass).ops;
    for (std::size_t i = 0; i < ops.size() && completed; ++i) {
      if (failure_.raised()) {
        completed = false;
        break;
      }
      progress_.instruction.store(static_cast<std::int32_t>(i), std::memory_order_relaxed);
      log_.come_to_instruction();
      has_input_ = false;
      if (!ops[i].begins_pair) {
        completed = dispatch(ops[i], pass);
        log_.leave_instruction();
      } else {
        completed = run_pair(ops[i], ops[i + 1], pass);
        ++i;
      }
    }
  } catch (...) {
    fail(pass, std::current_exception());
    completed = false;
  }
  log_.stop_clock();
  if (completed && after) completed = after(compute_lane_);
  log_.leave();
  return mark_exit(pass) && completed;
}

bool Executor::mark_exit(const Pass& pass) {
  if (!compute_lane_.is_asynchronous()) return true;
  try {
    if (exit_ == nullptr) exit_ = compute_lane_.make_mark();
    compute_lane_.record(*exit_);
    return true;
  } catch (...) {  // the device takes nothing any more: a recording of the pass that broke, say
    exit_.reset();
    if (!failure_.raised()) fail(pass, std::current_exception());
    return false;
  }
}

bool Executor::dispatch(const Op& op, const Pass& pass) {
  switch (op.code) {
    case OpCode::kPost:
      op.receiver->post(op.sequence, op.slot);
      return true;
    case OpCode::kForward:
    case OpCode::kBackward:
    case OpCode::kBackwardInput:
    case OpCode::kBackwardWeight:
    case OpCode::kRecompute:
      return run_stage(op, pass);
    case OpCode::kOffload:
    case OpCode::kReload:
      return move(op, pass);
    case OpCode::kSend:
      send(op, pass);
      return true;
    case OpCode::kRelease:
      return release(op);
  }
  return false;
}

bool Executor::run_stage(const Op& op, const Pass& pass) {
  Message given;
  if (!fetch_all(op, pass, arrivals_[0], given)) return false;
  start();
  run_given(op, pass, std::move(given));
  return true;
}

bool Executor::fetch_all(const Op& op, const Pass& pass, Arrival& arrival, Message& given) {
  if (op.wired == nullptr) {
    if (!fetch(op.input, pass, given)) return false;
  } else {
    std::vector<Message> messages(op.wired->reads().size());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      if (!fetch(op.wired->reads()[i].input, pass, messages[i])) return false;
    }
    given = values_.take_in(*op.wired, std::move(messages), held_);
  }
  arrival.note(given);
  return true;
}

void Executor::run_given(const Op& op, const Pass& pass, Message given) {
  if (op.wired == nullptr) {
    Message result = run_action(op, pass, std::move(given));
    if (op.held >= 0) held_[as_index(op.held)] = std::move(result);
    return;
  }
  const WriteWatch watch = values_.watch(*op.wired, given);
  Message result = run_action(op, pass, std::move(given));
  values_.check(*op.wired, watch);
  values_.hand_on(*op.wired, std::move(result), held_);
}

bool Executor::run_pair(const Op& forward, const Op& backward, const Pass& pass) {
  const std::int32_t at = progress_.instruction.load(std::memory_order_relaxed);
  std::array<Message, 2> given;
  if (!fetch_all(forward, pass, arrivals_[0], given[0])) return false;
  progress_.instruction.store(at + 1, std::memory_order_relaxed);  // what it waits for now
  if (!fetch_all(backward, pass, arrivals_[1], given[1])) return false;
  progress_.instruction.store(at, std::memory_order_relaxed);
  start();
  const Program& program = decoded(pass).program;
  std::array<std::int64_t, 2> spent_ns{};
  const auto half = [&](const Op& op, std::size_t i) {
    const auto& run = std::get<Run>(program.instructions[as_index(at) + i].op);
    return OverlapHalf{run.action, [&, i] {
                         const std::int64_t start = log_.clock_ns();
                         run_given(op, pass, std::move(given[i]));
                         spent_ns[i] = log_.clock_ns() - start;
                       }};
  };
  const OverlapHalves halves{half(forward, 0), half(backward, 1)};
  run_jointly(resources_.overlap.get(), halves, forward.stage == backward.stage, compute_lane_,
              device_, failing_);
  log_.leave_pair(spent_ns[0], spent_ns[1]);
  return true;
}

Message Executor::run_action(const Op& op, const Pass& pass, Message input) {
  await_mark(op, compute_lane_);
  const RunContext context = context_of(op, pass);
  const MicrobatchScope scope(
      context, op.code == OpCode::kForward ? forward_stream(pass) : StreamKind::kBackward);
  const int before = op.stage->num_activations();
  const std::size_t index = index_of(op, pass);
  const ProfilerRange range(log_.range_name(index));
  log_.start_on_device(index, compute_lane_);
  Message result = run_on_stage(op, context, std::move(input));
  log_.end_on_device(index, compute_lane_);
  log_.count_activations(op.stage->num_activations() - before);
  set_mark(op, compute_lane_);
  return result;
}

void Executor::start() {
  has_input_ = true;
  log_.start();
}

Message Executor::run_on_stage(const Op& op, const RunContext& context, Message input) {
  switch (op.code) {
    case OpCode::kForward:
      return op.stage->forward(context, std::move(input));
    case OpCode::kBackward:
      return op.stage->backward(context, std::move(input));
    case OpCode::kBackwardInput:
      return op.stage->backward_input(context, std::move(input));
    case OpCode::kBackwardWeight:
      op.stage->backward_weight(context);
      return {};
    case OpCode::kRecompute:
      op.stage->recompute(context);
      return {};
    case OpCode::kPost:
    case OpCode::kOffload:
    case OpCode::kReload:
    case OpCode::kSend:
    case OpCode::kRelease:
      break;
  }
  throw InternalError("no action of a stage");
}

bool Executor::move(const Op& op, const Pass& pass) {
  start();
  await_mark(op, *op.lane);
  const auto current = op.lane->make_current();
  const int before = op.stage->num_activations();
  const std::size_t index = index_of(op, pass);
  const ProfilerRange range(log_.range_name(index));
  log_.start_on_device(index, *op.lane);
  if (op.code == OpCode::kOffload) {
    op.stage->offload(context_of(op, pass), *op.lane);
  } else {
    op.stage->reload(context_of(op, pass), *op.lane, compute_lane_);
  }
  log_.end_on_device(index, *op.lane);
  set_mark(op, *op.lane);
  log_.count_activations(op.stage->num_activations() - before);
  return true;
}

RunContext Executor::context_of(const Op& op, const Pass& pass) const {
  RunContext context;
  context.microbatch = op.microbatch;
  context.num_microbatches = decoded(pass).program.num_microbatches;
  context.pass = pass;
  context.turn = op.turn;
  context.device = device_;
  context.offloads = op.offloads;
  context.recomputes = op.recomputes;
  return context;
}

void Executor::await_mark(const Op& op, Lane& lane) {
  if (op.awaits != kNoMark && lane.is_asynchronous()) lane.wait(*marks_[as_index(op.awaits)]);
}

void Executor::set_mark(const Op& op, Lane& lane) {
  if (op.sets == kNoMark || !lane.is_asynchronous()) return;
  auto& mark = marks_[as_index(op.sets)];
  if (mark == nullptr) mark = lane.make_mark();
  lane.record(*mark);
}

void Executor::send(const Op& op, const Pass& pass) {
  Message message = std::move(held_[as_index(op.held)]);
  message.key = op.key;
  message.epoch = pass.epoch;
  message.training = pass.training;
  message.step = pass.step;
  log_.send(message.tensors);
  op.sender->send(op.sequence, op.slot, std::move(message), compute_lane_);
}

bool Executor::fetch(const Input& input, const Pass& pass, Message& message) {
  if (input.receiver == nullptr) {
    if (input.slot >= 0) message = std::move(held_[as_index(input.slot)]);
    return true;
  }
  const Waiting waiting(progress_, now_ns());
  auto arrived = input.receiver->take(input.sequence, input.slot, *input.lane);
  spread_.enter(seat_);  // it may have slept, and been woken on its waker's core
  if (!arrived.has_value()) return false;
  message = std::move(*arrived);
  check(message, input, pass);
  log_.take(message.tensors);
  log_.end_on_device(as_index(input.posted), *input.lane);
  if (!input.lane->is_asynchronous()) return true;
  // One mark for all: a lane waits for where it stood when it was told to.
  if (fetched_ == nullptr) fetched_ = input.lane->make_mark();
  input.lane->record(*fetched_);
  compute_lane_.wait(*fetched_);
  // See Note [Who tells the allocator] in transport/local_channel.cpp.
  for (const at::Tensor& tensor : message.tensors) compute_lane_.adopt(tensor);
  return true;
}

void Executor::check(const Message& message, const Input& input, const Pass& pass) const {
  check_arrival(message, input.key, pass.epoch, pass.training);
  if (!pass.is_keyed || message.step == pass.step) return;
  throw ValueError(
      concat("the ranks would draw other random numbers: with rng_seed, step_index "
             "must be the same on all ranks, got ",
             pass.step, " on rank ", rank(), " and ", message.step, " on rank ", input.source));
}

bool Executor::release(const Op& op) {
  const Waiting waiting(progress_, now_ns());
  const bool released = op.sender->release(op.sequence, op.slot);
  log_.start();
  return released;
}

void Executor::fail(const Pass& pass, std::exception_ptr cause) {
  const Program& program = decoded(pass).program;
  const auto at = as_index(progress_.instruction.load(std::memory_order_relaxed));
  Failure failure;
  failure.rank = program.rank;
  failure.cause = std::move(cause);
  const Instruction& instruction = program.instructions[at];
  const auto* run = std::get_if<Run>(&instruction.op);
  if (const auto* move = std::get_if<Move>(&instruction.op)) {
    failure.kind = FailureKind::kAction;
    failure.action = move->action;
    failure.held = held_memory(pass);
  } else if (run != nullptr && has_input_) {
    failure.kind = FailureKind::kAction;
    failure.action = failing_.value_or(run->action);
    failure.held = held_memory(pass);
    if (failure.action->kind != ActionKind::kOverlap) {
      const std::size_t half = *failure.action == run->action ? 0 : 1;  // of a joint pair
      failure.message = arrivals_[half].describe(decoded(pass).ops[at + half], values_);
    }
  } else {
    failure.kind = FailureKind::kTransfer;
    if (run != nullptr) failure.action = run->action;
    failure.message = concat("while it ", describe_transfer(program, at));
  }
  failure_.set(std::move(failure));
}

HeldMemory Executor::held_memory(const Pass& pass) const {
  HeldMemory held;
  for (const auto& [index, stage] : resources_.stages)
    held.activations.emplace_back(index, stage->num_activations());
  held.bytes = log_.held_bytes();
  held.training = pass.training;
  return held;
}

Losses Executor::losses() const {
  Losses losses;
  for (const auto& [index, stage] : resources_.stages) {
    if (!stage->losses().empty()) losses.merge({stage->losses(), stage->loss_weights()});
  }
  return losses;
}

void Executor::abort() noexcept {
  for (auto& [edge, sender] : resources_.senders) sender->abort();
  for (auto& [edge, receiver] : resources_.receivers) receiver->abort();
}

bool Executor::reset() noexcept {
  bool usable = true;
  for (auto& [edge, sender] : resources_.senders) usable = sender->reset() && usable;
  for (auto& [edge, receiver] : resources_.receivers) usable = receiver->reset() && usable;
  for (auto& [stage, object] : resources_.stages) object->reset();
  for (Message& message : held_) message = {};
  return usable;
}

}  // namespace pipert

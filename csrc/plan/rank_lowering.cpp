#include "plan/rank_lowering.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "analysis/activations.h"
#include "base/index.h"
#include "plan/program_builder.h"
#include "plan/receiving.h"
#include "plan/sending.h"

namespace pipert {
namespace {

// Activations that go to the host: the marks of what happened to them last.
struct Moved {
  MarkId forward_ran = kNoMark;
  MarkId offloaded = kNoMark;
  MarkId reloaded = kNoMark;  // none again once a Run has waited for it
};

bool is_move(const Action& action) {
  return action.kind == ActionKind::kOffload || action.kind == ActionKind::kReload;
}

// With the compute lane, which comes before all others.
ProgramBuilder begin_program(const Dataflow& dataflow, Rank rank) {
  ProgramBuilder builder;
  builder.program.rank = rank;
  builder.program.num_ranks = dataflow.num_ranks();
  builder.add_lane(LaneKind::kCompute, {rank, rank});
  return builder;
}

class RankLowering {
 public:
  RankLowering(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
               const LowerOptions& options)
      : dataflow_(dataflow),
        rank_(rank),
        num_runs_(static_cast<int>(dataflow.runs(rank).size())),
        builder_(begin_program(dataflow, rank)),
        local_slots_(builder_.slots.add_group(SlotKind::kLocal, {rank, rank})),
        receiving_(dataflow, rank, options.receive_slots, builder_),
        sending_(dataflow, clocks, rank, options.send_slots, builder_),
        made_(as_index(num_runs_), kNoMark),
        held_(as_index(num_runs_)) {
    open_moves();
    builder_.program.instructions.reserve(as_index(num_runs_) + receiving_.num_messages() +
                                          2 * sending_.num_messages());
  }

  Program build() && {
    receiving_.post();
    for (int begin = 0, end = 0; begin < num_runs_; begin = end) {
      const bool is_pair = dataflow_.begins_pair(at(begin));
      end = begin + (is_pair ? 2 : 1);
      Program& program = builder_.program;
      if (is_pair) program.joint_pairs.push_back(program.instructions.size());
      for (int position = begin; position < end; ++position) emit(position);
      for (int position = begin; position < end; ++position) {
        if (crosses(dataflow_.consumer_of(at(position))))
          sending_.send(position, made_[as_index(position)]);
      }
      for (int position = begin; position < end; ++position) {
        const Place producer = dataflow_.producer_of(at(position));
        if (crosses(producer)) receiving_.post(producer.rank);
        sending_.release(position);
      }
    }
    sending_.release(num_runs_);
    count_activations();
    return std::move(builder_).build();
  }

 private:
  Place at(int position) const { return {rank_, position}; }
  bool crosses(Place other) const { return other.exists() && other.rank != rank_; }

  void open_moves() {
    for (const Action& action : dataflow_.runs(rank_)) {
      if (action.kind == ActionKind::kOffload) moved_[as_kind(action, ActionKind::kForward)] = {};
    }
    if (moved_.empty()) return;
    offload_lane_ = builder_.add_lane(LaneKind::kOffload, {rank_, rank_});
    reload_lane_ = builder_.add_lane(LaneKind::kReload, {rank_, rank_});
  }

  // Null if they stay where they are.
  Moved* moved_of(const Action& action) {
    if (moved_.empty()) return nullptr;
    const auto found = moved_.find(as_kind(action, ActionKind::kForward));
    return found == moved_.end() ? nullptr : &found->second;
  }

  void emit(int position) {
    const Action& action = dataflow_.run(at(position));
    if (is_move(action)) {
      emit_move(action);
    } else {
      emit_run(position);
    }
  }

  void emit_run(int position) {
    Run run{.action = dataflow_.run(at(position)), .reads = {}, .writes = {}};
    Instruction instruction{.op = Run{}, .lane = kComputeLane, .waits = {}, .mark = kNoMark};
    const Place producer = dataflow_.producer_of(at(position));
    Moved* const moved = moved_of(run.action);
    const bool is_forward = run.action.kind == ActionKind::kForward;
    bool is_awaited = moved != nullptr && is_forward;
    if (crosses(producer)) {
      const Incoming::Held held = receiving_.take(producer);
      run.reads.push_back({held.slot});
      instruction.waits.push_back(held.arrival);
      is_awaited |= receiving_.has_more(producer.rank);
    } else if (producer.exists()) {
      const SlotId slot = held_[as_index(producer.position)];
      run.reads.push_back({slot});
      builder_.slots.give_back(slot);
    }
    const Place consumer = dataflow_.consumer_of(at(position));
    if (crosses(consumer)) {
      run.writes.push_back(sending_.take_slot(position, instruction));
      is_awaited = true;
    } else if (consumer.exists()) {
      const SlotId slot = builder_.slots.take(local_slots_);
      run.writes.push_back(slot);
      held_[as_index(position)] = slot;
    }
    if (is_awaited) instruction.mark = builder_.new_mark();
    if (moved != nullptr && is_forward) moved->forward_ran = instruction.mark;
    // The first that needs them waits; what comes after it on the compute lane needn't.
    if (moved != nullptr && moved->reloaded != kNoMark)
      instruction.waits.push_back(std::exchange(moved->reloaded, kNoMark));
    if (crosses(producer)) receiving_.empty(run.reads.front().slot, instruction.mark);
    made_[as_index(position)] = instruction.mark;
    instruction.op = std::move(run);
    builder_.program.instructions.push_back(std::move(instruction));
  }

  // An OFFLOAD has its F behind it, a RELOAD its OFFLOAD, and somebody waits for both: verify() has
  // shown it.
  void emit_move(const Action& action) {
    Moved& moved = *moved_of(action);
    const bool leaves = action.kind == ActionKind::kOffload;
    const MarkId done = builder_.new_mark();
    builder_.program.instructions.push_back(
        {.op = Move{action},
         .lane = leaves ? offload_lane_ : reload_lane_,
         .waits = {leaves ? moved.forward_ran : moved.offloaded},
         .mark = done});
    (leaves ? moved.offloaded : moved.reloaded) = done;
  }

  void count_activations() {
    Activations activations;
    for (const Action& action : dataflow_.runs(rank_)) activations.expect(action);
    double peak = 0.0;
    for (const Action& action : dataflow_.runs(rank_))
      peak = std::max(peak, activations.run(action, ActivationSize{}));
    builder_.program.peak_activations = static_cast<int>(std::lround(peak));
  }

  const Dataflow& dataflow_;
  Rank rank_;
  int num_runs_;
  ProgramBuilder builder_;
  SlotPool::Group local_slots_;
  Receiving receiving_;
  Sending sending_;
  std::map<Action, Moved> moved_;       // by F
  LaneId offload_lane_ = kComputeLane;  // if anything is moved, as the next
  LaneId reload_lane_ = kComputeLane;
  std::vector<MarkId> made_;  // by Run: its mark
  std::vector<SlotId> held_;  // by Run: the local slot that its result is in
};

}  // namespace

Program lower_rank(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                   const LowerOptions& options) {
  return RankLowering(dataflow, clocks, rank, options).build();
}

}  // namespace pipert

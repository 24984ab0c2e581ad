#include "plan/rank_lowering.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <unordered_map>
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
        first_(dataflow.first_write({rank, 0})),
        local_(as_index(dataflow.first_write({rank, num_runs_}) - first_)) {
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
      for (int position = begin; position < end; ++position)
        sending_.send(position, made_[as_index(position)]);
      for (int position = begin; position < end; ++position) {
        for (const DeliveryId id : dataflow_.reads_of(at(position))) {
          const Delivery& delivery = dataflow_.delivery(id);
          if (delivery.crosses()) receiving_.post(delivery.writer.rank);
        }
        sending_.release(position);
      }
    }
    sending_.release(num_runs_);
    count_activations();
    return std::move(builder_).build();
  }

 private:
  Place at(int position) const { return {rank_, position}; }

  // Of a delivery that stays here.
  SlotId& local_slot(DeliveryId id) {
    const DeliveryId own = id - first_;
    const bool is_result = own >= 0 && as_index(own) < local_.size();
    return is_result ? local_[as_index(own)] : kept_[id];
  }

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
    Moved* const moved = moved_of(run.action);
    const bool is_forward = run.action.kind == ActionKind::kForward;
    bool is_awaited = moved != nullptr && is_forward;
    is_awaited |= read(position, run, instruction);
    is_awaited |= write(position, run, instruction);
    if (is_awaited) instruction.mark = builder_.new_mark();
    if (moved != nullptr && is_forward) moved->forward_ran = instruction.mark;
    // The first that needs them waits; what comes after it on the compute lane needn't.
    if (moved != nullptr && moved->reloaded != kNoMark)
      instruction.waits.push_back(std::exchange(moved->reloaded, kNoMark));
    for (const Read& read : run.reads) {
      if (builder_.slots.kind(read.slot) == SlotKind::kReceive)
        receiving_.empty(read.slot, instruction.mark);
    }
    made_[as_index(position)] = instruction.mark;
    instruction.op = std::move(run);
    builder_.program.instructions.push_back(std::move(instruction));
  }

  // Takes out all that the Run reads, then keeps what others read after it. Returns whether a
  // receive waits for it.
  bool read(int position, Run& run, Instruction& instruction) {
    bool is_awaited = false;
    const auto ids = dataflow_.reads_of(at(position));
    for (const DeliveryId id : ids) {
      const Delivery& delivery = dataflow_.delivery(id);
      if (delivery.crosses()) {
        const Incoming::Held held = receiving_.take(delivery);
        run.reads.push_back({held.slot});
        instruction.waits.push_back(held.arrival);
        is_awaited |= receiving_.has_more(delivery.writer.rank);
      } else {
        const SlotId slot = local_slot(id);
        run.reads.push_back({slot});
        builder_.slots.give_back(slot);
        if (!kept_.empty()) kept_.erase(id);
      }
    }
    Read* each = run.reads.begin();
    for (const DeliveryId id : ids) {
      const DeliveryId kept = dataflow_.delivery(id).kept;
      if (kept != kNoDelivery) each->keeps = local_slot(kept) = builder_.slots.take(local_slots_);
      ++each;
    }
    return is_awaited;
  }

  // Gives the Run slots for its result. Returns whether a Send waits for it.
  bool write(int position, Run& run, Instruction& instruction) {
    bool is_awaited = false;
    DeliveryId id = dataflow_.first_write(at(position));
    for (const Delivery& delivery : dataflow_.writes_of(at(position))) {
      if (delivery.crosses()) {
        run.writes.push_back(sending_.take_slot(id, instruction));
        is_awaited = true;
      } else {
        run.writes.push_back(local_slot(id) = builder_.slots.take(local_slots_));
      }
      ++id;
    }
    return is_awaited;
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
  std::vector<MarkId> made_;   // by Run: its mark
  DeliveryId first_;           // that the rank makes
  std::vector<SlotId> local_;  // by delivery, from first_ on: the local slot of what stays here
  std::unordered_map<DeliveryId, SlotId> kept_;  // likewise, of what is kept and not yet read
};

}  // namespace

Program lower_rank(const Dataflow& dataflow, const Clocks& clocks, Rank rank,
                   const LowerOptions& options) {
  return RankLowering(dataflow, clocks, rank, options).build();
}

}  // namespace pipert

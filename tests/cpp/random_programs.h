// random_programs: small Programs of schedules that nobody would choose, and random changes of one
// thing in them. The same for the same seed on every machine.
#pragma once

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "base/index.h"
#include "ir/schedule.h"
#include "ir/stage_graph.h"
#include "plan/lower.h"
#include "schedule/offload.h"
#include "search/random.h"

namespace pipert {

// Any order in which each action comes after what it needs.
class RandomSchedule {
 public:
  explicit RandomSchedule(Random& random) : random_(random), placement_(place()) {
    for (Microbatch microbatch = 0; microbatch < num_microbatches_; ++microbatch) {
      const int size = placement_.stages_per_copy();
      const StageIndex first = random_.below(placement_.num_copies()) * size;
      for (StageIndex stage = first; stage < first + size; ++stage) add(stage, microbatch);
    }
  }

  Schedule make() {
    Schedule schedule{.name = "random",
                      .num_microbatches = num_microbatches_,
                      .num_slices = 1,
                      .placement = placement_,
                      .ranks = {}};
    schedule.ranks.resize(as_index(placement_.num_ranks()));
    while (!left_.empty()) {
      std::vector<std::size_t> ready;
      for (std::size_t i = 0; i < left_.size(); ++i) {
        if (is_ready(left_[i])) ready.push_back(i);
      }
      const std::size_t at = random_.pick(ready);
      const Action action = left_[at];
      left_.erase(left_.begin() + static_cast<std::ptrdiff_t>(at));
      done_.insert(action);
      add_or_pair(schedule.ranks[as_index(placement_.rank_of(action.stage))], action);
    }
    return schedule;
  }

 private:
  Placement place() {
    if (random_.below(5) == 0) return Placement::bidirectional(2);
    const int num_ranks = 1 + random_.below(3);
    const int num_stages = num_ranks * (num_ranks < 3 ? 1 + random_.below(2) : 1);
    return random_.below(2) == 0 ? Placement::loop(num_ranks, num_stages)
                                 : Placement::v_shaped(num_ranks, num_stages);
  }

  void add(StageIndex stage, Microbatch microbatch) {
    const Action action = forward(stage, microbatch);
    left_.push_back(action);
    if (random_.below(6) == 0) left_.push_back(as_kind(action, ActionKind::kRecompute));
    if (random_.below(2) == 0) {
      left_.push_back(backward(stage, microbatch));
    } else {
      left_.push_back(as_kind(action, ActionKind::kInputGrad));
      left_.push_back(as_kind(action, ActionKind::kWeightGrad));
    }
  }

  bool is_left(const Action& action, ActionKind kind) const {
    return std::find(left_.begin(), left_.end(), as_kind(action, kind)) != left_.end();
  }
  bool has_gradient(const Action& action) const {
    return done_.contains(as_kind(action, ActionKind::kBackward)) ||
           done_.contains(as_kind(action, ActionKind::kInputGrad));
  }
  bool is_ready(const Action& action) const {
    Action other = action;
    if (action.kind == ActionKind::kForward) {
      --other.stage;
      return placement_.is_first(action.stage) || done_.contains(other);
    }
    if (is_left(action, ActionKind::kForward)) return false;
    if (action.kind == ActionKind::kRecompute) return true;
    if (action.kind == ActionKind::kWeightGrad) return !is_left(action, ActionKind::kInputGrad);
    ++other.stage;
    return !is_left(action, ActionKind::kRecompute) &&
           (placement_.is_last(action.stage) || has_gradient(other));
  }

  void add_or_pair(std::vector<Action>& actions, const Action& action) {
    const bool is_half =
        action.kind == ActionKind::kBackward || action.kind == ActionKind::kInputGrad;
    const bool pairs = is_half && !actions.empty() && actions.back().kind == ActionKind::kForward &&
                       random_.below(3) > 0;
    if (pairs) {
      actions.back() = overlap(actions.back(), action);
    } else {
      actions.push_back(action);
    }
  }

  Random& random_;
  int num_microbatches_ = 1 + random_.below(3);
  Placement placement_;
  std::vector<Action> left_;
  std::set<Action> done_;
};

// Any pairs of stages beyond the chain, most of the time some.
inline StageGraph random_graph(int num_stages, Random& random) {
  std::vector<StagePair> down;
  std::vector<StagePair> up;
  for (StageIndex from = 0; from < num_stages; ++from) {
    for (StageIndex to = from + 2; to < num_stages; ++to) {
      if (random.below(2) == 0) down.push_back({from, to});
      if (random.below(2) == 0) up.push_back({to, from});
    }
  }
  return make_stage_graph(std::move(down), std::move(up));
}

// Programs of one, with any options. ValueError where the schedule can't be lowered with them.
inline std::vector<Program> random_programs(Random& random) {
  Schedule schedule = RandomSchedule(random).make();
  if (random.below(4) == 0) schedule = with_offload(schedule, {.ahead = random.below(2)});
  if (random.below(4) == 0) schedule = forward_only(schedule);
  LowerOptions options{.receive_slots = 1 + random.below(2)};
  if (random.below(2) == 0) options.send_slots = 1 + random.below(2);
  options.joint_pairs = random.below(2) == 0;
  options.stage_graph = random_graph(schedule.placement.stages_per_copy(), random);
  return lower(schedule, options);
}

// Changes one thing of a Program, if there is anything of the kind that it picks.
class RandomChange {
 public:
  RandomChange(Program& program, Random& random) : program_(program), random_(random) {}

  void make() {
    if (program_.instructions.empty()) return;
    Instruction& at = program_.instructions[any_place()];
    switch (random_.below(10)) {
      case 0:
        return change_waits(at);
      case 1:  // its mark goes, or to another
        std::swap(at.mark, program_.instructions[any_place()].mark);
        return;
      case 2:
        at.mark = kNoMark;
        return;
      case 3:
        return change_slot(at);
      case 4:
        return change_place();
      case 5:
        program_.instructions.erase(program_.instructions.begin() +
                                    (&at - &program_.instructions[0]));
        return;
      case 6:
        at.lane = random_.below(static_cast<int>(program_.lanes.size()));
        return;
      case 7:  // two do each other's work, where they stand
        std::swap(at.op, program_.instructions[any_place()].op);
        return;
      case 8:
        return change_sequence(at);
      default:
        return change_pairs();
    }
  }

 private:
  std::size_t any_place() {
    return as_index(random_.below(static_cast<int>(program_.instructions.size())));
  }
  SlotId any_slot() { return random_.below(static_cast<int>(program_.slots.size())); }

  void change_waits(Instruction& at) {
    std::vector<MarkId> waits(at.waits.begin(), at.waits.end());
    if (!waits.empty() && random_.below(3) > 0)
      waits.erase(waits.begin() + random_.below(static_cast<int>(waits.size())));
    if (waits.size() < 3 && program_.num_marks > 0 && random_.below(2) == 0)
      waits.push_back(random_.below(program_.num_marks));
    at.waits = {};
    for (const MarkId mark : waits) at.waits.push_back(mark);
  }

  void change_slot(Instruction& at) {
    if (program_.slots.empty()) return;
    if (auto* recv = std::get_if<Recv>(&at.op)) recv->slot = any_slot();
    if (auto* send = std::get_if<Send>(&at.op)) send->slot = any_slot();
    if (auto* release = std::get_if<Release>(&at.op)) release->slot = any_slot();
    if (auto* run = std::get_if<Run>(&at.op)) {
      if (random_.below(2) == 0) return change_writes(*run);
      change_reads(*run);
    }
  }

  void change_reads(Run& run) {
    if (run.reads.empty()) return;
    const auto any_read = [&] {
      return run.reads.begin() + random_.below(static_cast<int>(run.reads.size()));
    };
    switch (random_.below(4)) {
      case 0:  // all but one
        return leave_out(run.reads, *any_read());
      case 1:
        any_read()->slot = any_slot();
        return;
      case 2:
        any_read()->keeps = random_.below(2) == 0 ? any_slot() : kNoSlot;
        return;
      default:
        return std::swap(*any_read(), *any_read());
    }
  }

  static void leave_out(Few<Read, 1>& reads, Read left_out) {
    const Few<Read, 1> given = reads;
    reads = {};
    for (const Read& read : given) {
      if (!(read == left_out)) reads.push_back(read);
    }
  }

  void change_writes(Run& run) {
    if (run.writes.empty()) return;
    run.writes = {};
    if (random_.below(2) == 0) run.writes.push_back(any_slot());
  }

  void change_place() {
    auto& all = program_.instructions;
    const auto from = all.begin() + static_cast<std::ptrdiff_t>(any_place());
    const auto to = all.begin() + static_cast<std::ptrdiff_t>(any_place());
    if (from < to) {
      std::rotate(from, from + 1, to + 1);
    } else {
      std::rotate(to, from, from + 1);
    }
  }

  // With the next transfer of the same kind.
  void change_sequence(Instruction& at) {
    for (Instruction& other : program_.instructions) {
      if (&other == &at || other.lane != at.lane || other.op.index() != at.op.index()) continue;
      if (auto* recv = std::get_if<Recv>(&at.op))
        return std::swap(recv->sequence, std::get<Recv>(other.op).sequence);
      if (auto* send = std::get_if<Send>(&at.op))
        return std::swap(send->sequence, std::get<Send>(other.op).sequence);
      if (auto* release = std::get_if<Release>(&at.op))
        return std::swap(release->sequence, std::get<Release>(other.op).sequence);
    }
  }

  void change_pairs() {
    auto& pairs = program_.joint_pairs;
    const std::size_t at = any_place();
    const auto found = std::lower_bound(pairs.begin(), pairs.end(), at);
    if (found != pairs.end() && random_.below(2) == 0) {
      pairs.erase(found);
    } else if (found == pairs.end() || *found != at) {
      pairs.insert(found, at);
    }
  }

  Program& program_;
  Random& random_;
};

}  // namespace pipert

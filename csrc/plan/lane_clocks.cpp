#include "plan/lane_clocks.h"

#include <algorithm>
#include <limits>

namespace pipert {
namespace {

void join(std::span<int> clock, std::span<const int> other) {
  for (std::size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

}  // namespace

LaneClocks::LaneClocks(const Program& program, const MarkUse& marks)
    : program_(program),
      marks_(marks),
      num_lanes_(program.lanes.size() + 1),
      pair_(program.joint_pairs.begin()),
      lanes_(program.instructions.size()),
      positions_(program.instructions.size()),
      counts_(num_lanes_),
      now_(num_lanes_),
      begun_(num_lanes_ * num_lanes_),
      done_(num_lanes_ * num_lanes_),
      set_(as_index(program.num_marks) * num_lanes_) {}

bool LaneClocks::is_transfer(std::size_t lane) const {
  if (lane == second_halves()) return false;
  const LaneKind kind = program_.lanes[lane].kind;
  return kind == LaneKind::kSend || kind == LaneKind::kReceive;
}

bool LaneClocks::is_release() const {
  return std::holds_alternative<Release>(program_.instructions[at_].op);
}

void LaneClocks::begin_next() {
  at_ = next_++;
  const Instruction& instruction = program_.instructions[at_];
  const bool has_pair = pair_ != program_.joint_pairs.end();
  const bool is_second = has_pair && *pair_ + 1 == at_;
  std::size_t lane = as_index(instruction.lane);
  if (is_second) {
    lane = second_halves();
    ++pair_;  // its clock is the first half's, which is still in now_
  } else if (is_release()) {
    std::fill(now_.begin(), now_.end(), 0);
  } else {
    const auto before = row(is_transfer(lane) ? begun_ : done_, lane);
    std::copy(before.begin(), before.end(), now_.begin());
    if (lane == kComputeLane) join(now_, row(done_, second_halves()));
  }
  lanes_[at_] = lane;
  positions_[at_] = is_release() ? std::numeric_limits<int>::max() : counts_[lane]++;
  find_unneeded(instruction);
  if (is_second) return;
  join_waits(instruction, at_);
  if (has_pair && *pair_ == at_) join_waits(program_.instructions[at_ + 1], at_);
}

void LaneClocks::join_waits(const Instruction& instruction, std::size_t at) {
  for (const MarkId mark : instruction.waits) {
    if (marks_.setter(mark) < at) join_mark(mark);
  }
}

void LaneClocks::join_mark(MarkId mark) { join(now_, row(set_, as_index(mark))); }

void LaneClocks::find_unneeded(const Instruction& instruction) {
  const auto implies = [&](MarkId other, std::size_t setter) {
    return row(set_, as_index(other))[lanes_[setter]] > positions_[setter];
  };
  for (const MarkId* wait = instruction.waits.begin(); wait != instruction.waits.end(); ++wait) {
    const std::size_t setter = marks_.setter(*wait);
    if (setter + 1 == at_ && lanes_[at_] == second_halves()) continue;  // never comes: a deadlock
    const bool is_implied =
        (lanes_[at_] != second_halves() && is_done(setter)) ||
        std::any_of(instruction.waits.begin(), instruction.waits.end(), [&](const MarkId& other) {
          return other == *wait ? &other < wait : implies(other, setter);
        });
    if (is_implied) unneeded_.push_back({program_.rank, at_, *wait, /*is_wait=*/true});
  }
}

void LaneClocks::end() {
  const MarkId mark = program_.instructions[at_].mark;
  if (is_release()) {
    if (mark != kNoMark) std::copy(now_.begin(), now_.end(), row(set_, as_index(mark)).begin());
    return;
  }
  const std::size_t lane = lanes_[at_];
  const auto begun = row(begun_, lane);
  const auto done = row(done_, lane);
  std::copy(now_.begin(), now_.end(), begun.begin());
  join(done, begun);
  done[lane] = counts_[lane];
  if (mark != kNoMark) std::copy(done.begin(), done.end(), row(set_, as_index(mark)).begin());
}

}  // namespace pipert

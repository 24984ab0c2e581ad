// LaneClocks: which instructions of a rank are surely done when another begins. Goes through the
// Program once, in its order, one instruction at a time.
//
// Note [What orders a rank's instructions]
//
// Lanes and marks alone, not the order of issue: lanes are asynchronous.
//  - The compute lane and those of moves do one instruction after the other.
//  - A transfer lane begins its instructions in order and ends them in order; several may be on
//    their way at once. So a Send that begins knows that those before it on its lane have begun, no
//    more.
//  - A Release has the order of its marks alone: it must not wait for what was sent behind its
//    message. So nobody knows it to be done but who waits for its mark.
//  - An instruction begins after the marks that it waits for are set, by instructions that are
//    done.
//  - The halves of a joint pair begin together, once all that either waits for is there and was
//    taken out of its slots, and in no order between them: the second has a lane of its own here.
//    What follows them on the compute lane begins when both are done.
//
// All of it is a vector clock for each lane: of each lane of the rank, how many of its instructions
// are done. Time is O(instructions x lanes), memory O(marks x lanes); a rank has a lane for each
// edge, so few.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/index.h"
#include "plan/mark_use.h"
#include "plan/program.h"

namespace pipert {

class LaneClocks {
 public:
  // REQUIRES a Program with good form and good marks; both arguments outlive this.
  LaneClocks(const Program& program, const MarkUse& marks);

  // The next instruction begins, the first one at first.
  void begin_next();
  // Whether `earlier` is done when the instruction at hand begins. REQUIRES one issued before it.
  bool is_done(std::size_t earlier) const { return now_[lanes_[earlier]] > positions_[earlier]; }
  // How many instructions of `lane` are done when the one at hand begins.
  int num_done(std::size_t lane) const { return now_[lane]; }
  // The lane that holds the second halves of joint pairs.
  std::size_t second_halves() const { return num_lanes_ - 1; }
  // Among those of its lane (second_halves() for those). REQUIRES one that has begun.
  int position(std::size_t instruction) const { return positions_[instruction]; }

  // The instruction at hand ends: it sets its mark.
  void end();
  // Waits that lanes and other marks imply, of the instructions so far.
  const std::vector<Unneeded>& unneeded() const { return unneeded_; }

 private:
  using Row = std::span<int>;
  Row row(std::vector<int>& rows, std::size_t i) const {
    return Row(rows).subspan(i * num_lanes_, num_lanes_);
  }
  bool is_transfer(std::size_t lane) const;
  bool is_release() const;
  void join_waits(const Instruction& instruction, std::size_t at);
  void join_mark(MarkId mark);
  void find_unneeded(const Instruction& instruction);

  const Program& program_;
  const MarkUse& marks_;
  std::size_t num_lanes_;  // the Program's, and second_halves()
  std::size_t at_ = 0;
  std::size_t next_ = 0;
  std::vector<std::size_t>::const_iterator pair_;  // the first whose second half hasn't begun
  std::vector<std::size_t> lanes_;                 // by instruction
  std::vector<int> positions_;                     // by instruction
  std::vector<int> counts_;                        // by lane: that have begun
  // Rows of num_lanes_ numbers each:
  std::vector<int> now_;    // when the instruction at hand begins
  std::vector<int> begun_;  // by lane: when its last instruction began
  std::vector<int> done_;   // by lane: when it ended
  std::vector<int> set_;    // by mark: when it was set
  std::vector<Unneeded> unneeded_;
};

}  // namespace pipert

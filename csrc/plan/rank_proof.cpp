#include "plan/rank_proof.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "plan/held_state.h"
#include "plan/lane_clocks.h"
#include "plan/program_form.h"

namespace pipert {
namespace {

class RankProver {
 public:
  RankProver(const Program& program, const MarkUse& marks)
      : program_(program),
        marks_(marks),
        clocks_(program, marks),
        slots_(program, clocks_),
        held_(program, clocks_),
        known_(program.lanes.size()),
        posted_(program.slots.size()) {
    proof_.transfers.resize(program.lanes.size());
    for (std::size_t lane = 0; lane < program.lanes.size(); ++lane) {
      if (program.lanes[lane].kind == LaneKind::kReceive) receive_lanes_.push_back(lane);
    }
  }

  RankProof prove() && {
    const std::size_t size = program_.instructions.size();
    for (std::size_t i = 0; i < size && !proof_.finding; ++i) {
      clocks_.begin_next();
      proof_.finding = take(i);
      clocks_.end();
    }
    if (!proof_.finding) proof_.finding = slots_.finish();
    proof_.refills = slots_.refills();
    proof_.unneeded = marks_.unneeded(program_.rank);
    proof_.unneeded.insert(proof_.unneeded.end(), clocks_.unneeded().begin(),
                           clocks_.unneeded().end());
    const auto by_place = [](const Unneeded& a, const Unneeded& b) {
      return std::pair(a.instruction, a.is_wait) < std::pair(b.instruction, b.is_wait);
    };
    std::sort(proof_.unneeded.begin(), proof_.unneeded.end(), by_place);
    return std::move(proof_);
  }

 private:
  MaybeFinding take(std::size_t at) {
    const auto& op = program_.instructions[at].op;
    MaybeFinding finding;
    if (std::holds_alternative<Run>(op)) finding = take_run(at);
    if (const auto* recv = std::get_if<Recv>(&op)) finding = take_transfer(at, recv->sequence);
    if (const auto* send = std::get_if<Send>(&op)) finding = take_transfer(at, send->sequence);
    if (!finding) finding = slots_.take(at);
    if (!finding) note_reader(at);
    if (!finding) finding = held_.take(at);
    proof_.step_of.resize(slots_.refills().size(), proof_.num_steps - 1);
    return finding;
  }

  MaybeFinding take_run(std::size_t at) {
    const auto& pairs = program_.joint_pairs;
    const bool is_second = at > 0 && std::binary_search(pairs.begin(), pairs.end(), at - 1);
    if (is_second) {
      pair_steps_.push_back(proof_.num_steps);
      return check_second_half(at);
    }
    const int step = proof_.num_steps++;
    for (const std::size_t lane : receive_lanes_) {
      const int begin = std::exchange(known_[lane], clocks_.num_done(lane));
      if (known_[lane] == begin) continue;
      proof_.arrivals.push_back({step, lane, begin, known_[lane]});
      auto& steps = proof_.transfers[lane].steps;
      std::fill(steps.begin() + begin, steps.begin() + known_[lane], step);
    }
    return std::nullopt;
  }

  MaybeFinding check_second_half(std::size_t at) const {
    for (const MarkId mark : program_.instructions[at].waits) {
      if (marks_.setter(mark) + 1 != at) continue;
      return find(Flaw::kDeadlock, program_, {at, at - 1},
                  concat(name_of(program_, at), " waits for m", mark, ", set by ",
                         name_of(program_, at - 1), ", which it must begin together with"));
    }
    return std::nullopt;
  }

  MaybeFinding take_transfer(std::size_t at, int sequence) {
    const std::size_t lane = as_index(program_.instructions[at].lane);
    LaneTransfers& transfers = proof_.transfers[lane];
    const int expected = static_cast<int>(transfers.instructions.size());
    if (sequence != expected) {
      return find(Flaw::kMessage, program_, {at},
                  concat(name_of(program_, at), ": expected #", expected, " of its edge next"));
    }
    transfers.instructions.push_back(at);
    const bool sends = program_.lanes[lane].kind == LaneKind::kSend;
    transfers.steps.push_back(sends ? num_steps_known() : -1);
    return std::nullopt;
  }

  void note_reader(std::size_t at) {
    const Instruction& instruction = program_.instructions[at];
    if (const auto* recv = std::get_if<Recv>(&instruction.op)) {
      auto& readers = proof_.transfers[as_index(instruction.lane)].readers;
      posted_[as_index(recv->slot)] = {as_index(instruction.lane), readers.size()};
      readers.push_back(at);  // until it is read
    }
    const auto* run = std::get_if<Run>(&instruction.op);
    if (run == nullptr) return;
    for (const auto& [slot, keeps] : run->reads) {
      if (program_.slots[as_index(slot)].kind != SlotKind::kReceive) continue;
      const auto& [lane, sequence] = posted_[as_index(slot)];
      proof_.transfers[lane].readers[sequence] = at;
    }
  }

  // A step of a pair has begun when either half is done.
  int num_steps_known() const {
    const int num_pairs = clocks_.num_done(clocks_.second_halves());
    const int known = clocks_.num_done(kComputeLane);
    return num_pairs == 0 ? known : std::max(known, pair_steps_[as_index(num_pairs - 1)]);
  }

  const Program& program_;
  const MarkUse& marks_;
  LaneClocks clocks_;
  SlotAccesses slots_;
  HeldState held_;
  RankProof proof_;
  std::vector<std::size_t> receive_lanes_;
  std::vector<int> known_;  // by receive lane: messages that are here at the last step
  // By receive slot: the lane and the sequence of the message that it was posted for last.
  std::vector<std::pair<std::size_t, std::size_t>> posted_;
  std::vector<int> pair_steps_;  // by pair: the number of steps up to it, with it
};

}  // namespace

RankProof prove_rank(const Program& program) {
  RankProof proof;
  proof.finding = check_form(program);
  if (proof.finding) return proof;
  const MarkUse marks(program);
  proof.finding = marks.finding();
  if (proof.finding) return proof;
  proof = RankProver(program, marks).prove();
  proof.setters = marks.setters();
  return proof;
}

}  // namespace pipert

#include "plan/lane_waits.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "analysis/wait_cycle.h"
#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

bool is_transfer(const Instruction& instruction) {
  return std::holds_alternative<Send>(instruction.op) ||
         std::holds_alternative<Recv>(instruction.op);
}

// The lanes of all ranks stand in one row. Each goes through its instructions step by step: a
// transfer takes two steps, it begins and it ends; another takes one. Of a joint pair neither half
// is done before both have come to theirs.
class LaneWalk {
 public:
  LaneWalk(std::span<const Program> programs, std::span<const RankProof> proofs,
           const MessageEnds& ends)
      : programs_(programs), proofs_(proofs), ends_(ends), ranks_(programs.size()) {
    for (const Program& program : programs) lay_out(program);
  }

  MaybeFinding run() {
    std::vector<int> num_steps;
    for (const auto& lane : steps_) num_steps.push_back(static_cast<int>(lane.size()));
    done_.resize(steps_.size());
    const auto done = walk(
        num_steps, [&](int lane, int step) { return first_wait(lane, step); },
        [&](int lane, int step) { done_[as_index(lane)] = step + 1; });
    if (done == num_steps) return std::nullopt;
    return cycle(num_steps);
  }

 private:
  struct RankLayout {
    int first_lane = 0;
    int num_lanes = 0;                  // and one behind them, of Releases
    std::vector<int> begins;            // by instruction: the steps of its lane when it has begun
    std::vector<int> ends;              // and when it is done
    std::vector<std::size_t> blockers;  // by instruction: the last before it that blocks the thread
  };

  void lay_out(const Program& program) {
    RankLayout& layout = ranks_[as_index(program.rank)];
    layout.first_lane = static_cast<int>(steps_.size());
    layout.num_lanes = static_cast<int>(program.lanes.size());
    steps_.resize(steps_.size() + program.lanes.size() + 1);
    rank_of_.resize(steps_.size(), program.rank);
    auto pair = program.joint_pairs.begin();
    std::size_t blocker = kNone;
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
      const bool is_pair = pair != program.joint_pairs.end() && *pair == i;
      if (is_pair) ++pair;
      const std::size_t last = is_pair ? i + 1 : i;
      auto& lane = steps_[as_index(lane_of(layout, program.instructions[i]))];
      for (std::size_t half = i; half <= last; ++half) {
        lane.push_back(half);
        layout.begins.push_back(static_cast<int>(lane.size()));
        layout.blockers.push_back(blocker);
      }
      if (is_transfer(program.instructions[i])) {
        lane.push_back(i);
      } else {
        blocker = last;
      }
      layout.ends.resize(last + 1, static_cast<int>(lane.size()));
      i = last;
    }
  }

  static int lane_of(const RankLayout& layout, const Instruction& instruction) {
    const bool releases = std::holds_alternative<Release>(instruction.op);
    return layout.first_lane + (releases ? layout.num_lanes : instruction.lane);
  }

  // For instruction `i` of `rank` to have begun, or to be done.
  Wait begin_of(Rank rank, std::size_t i) const {
    const RankLayout& layout = ranks_[as_index(rank)];
    return {lane_of(layout, programs_[as_index(rank)].instructions[i]), layout.begins[i]};
  }
  Wait end_of(Rank rank, std::size_t i) const {
    const RankLayout& layout = ranks_[as_index(rank)];
    return {lane_of(layout, programs_[as_index(rank)].instructions[i]), layout.ends[i]};
  }
  bool is_over(const Wait& wait) const { return done_[as_index(wait.rank)] >= wait.steps; }

  std::optional<Wait> first_wait(int lane, int step) const {
    const Rank rank = rank_of_[as_index(lane)];
    const std::size_t at = steps_[as_index(lane)][as_index(step)];
    const Instruction& instruction = programs_[as_index(rank)].instructions[at];
    const RankLayout& layout = ranks_[as_index(rank)];
    if (step >= layout.begins[at])  // it has begun
      return is_transfer(instruction) ? std::optional(peer_wait(rank, at)) : std::nullopt;
    if (layout.blockers[at] != kNone) {
      const Wait issue = end_of(rank, layout.blockers[at]);
      if (!is_over(issue)) return issue;
    }
    if (auto wait = mark_wait(rank, instruction)) return wait;
    if (const auto* release = std::get_if<Release>(&instruction.op))
      return reader_wait(rank, instruction.lane, release->sequence);
    return std::nullopt;
  }

  std::optional<Wait> mark_wait(Rank rank, const Instruction& instruction) const {
    for (const MarkId mark : instruction.waits) {
      const Wait wait = end_of(rank, proofs_[as_index(rank)].setters[as_index(mark)]);
      if (!is_over(wait)) return wait;
    }
    return std::nullopt;
  }

  // For a message that `lane` of `rank` sends to be taken.
  Wait reader_wait(Rank rank, LaneId lane, int sequence) const {
    const MessageEnds::End peer = ends_.peer(rank, as_index(lane));
    const auto& readers = proofs_[as_index(peer.rank)].transfers[peer.lane].readers;
    return begin_of(peer.rank, readers[as_index(sequence)]);
  }

  Wait peer_wait(Rank rank, std::size_t at) const {
    const Instruction& instruction = programs_[as_index(rank)].instructions[at];
    const MessageEnds::End peer = ends_.peer(rank, as_index(instruction.lane));
    const auto* send = std::get_if<Send>(&instruction.op);
    const int sequence = send != nullptr ? send->sequence : std::get<Recv>(instruction.op).sequence;
    const auto& others = proofs_[as_index(peer.rank)].transfers[peer.lane].instructions;
    return begin_of(peer.rank, others[as_index(sequence)]);
  }

  // Each lane that is stuck waits for one that is stuck.
  Finding cycle(const std::vector<int>& num_steps) const {
    StuckRanks stuck;
    for (std::size_t lane = 0; lane < steps_.size(); ++lane) {
      int awaited = StuckRanks::kNone;
      if (done_[lane] < num_steps[lane])
        awaited = first_wait(static_cast<int>(lane), done_[lane])->rank;
      stuck.awaited.push_back(awaited);
    }
    stuck.collective.resize(steps_.size(), StuckRanks::kNone);
    Finding finding{.flaw = Flaw::kDeadlock, .message = "", .places = {}};
    for (const int lane : shortest_cycle(stuck)) {
      const Rank rank = rank_of_[as_index(lane)];
      const Program& program = programs_[as_index(rank)];
      const std::size_t at = steps_[as_index(lane)][as_index(done_[as_index(lane)])];
      finding.message += concat(finding.places.empty() ? "" : ", which waits for ", "rank ", rank,
                                " at ", name_of(program, at));
      finding.places.push_back(place_of(program, at));
    }
    finding.message +=
        finding.places.size() == 1 ? " waits for itself" : ", which waits for the first";
    return finding;
  }

  std::span<const Program> programs_;
  std::span<const RankProof> proofs_;
  const MessageEnds& ends_;
  std::vector<RankLayout> ranks_;
  std::vector<std::vector<std::size_t>> steps_;  // by lane: the instruction of each step
  std::vector<Rank> rank_of_;                    // by lane
  std::vector<int> done_;                        // by lane: steps
};

}  // namespace

MaybeFinding find_deadlock(std::span<const Program> programs, std::span<const RankProof> proofs,
                           const MessageEnds& ends) {
  return LaneWalk(programs, proofs, ends).run();
}

}  // namespace pipert

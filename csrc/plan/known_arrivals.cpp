#include "plan/known_arrivals.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

using Clock = std::vector<int>;  // by rank: steps that have surely begun

class KnownArrivals {
 public:
  KnownArrivals(std::span<const Program> programs, std::span<const RankProof> proofs,
                const MessageEnds& ends)
      : programs_(programs), proofs_(proofs), ends_(ends), ranks_(programs.size()) {
    for (std::size_t rank = 0; rank < programs.size(); ++rank) {
      const auto& lanes = programs[rank].lanes;
      ranks_[rank].now.resize(programs.size());
      ranks_[rank].carried.resize(lanes.size());
      for (std::size_t lane = 0; lane < lanes.size(); ++lane) {
        if (lanes[lane].kind == LaneKind::kSend) ranks_[rank].send_lanes.push_back(lane);
      }
      leave(static_cast<Rank>(rank));
    }
  }

  // (rank, index of the refill)
  std::optional<std::pair<Rank, std::size_t>> run() {
    std::vector<int> num_steps;
    for (const RankProof& proof : proofs_) num_steps.push_back(proof.num_steps);
    const auto done = walk(
        num_steps, [&](Rank rank, int) { return first_wait(rank); },
        [&](Rank rank, int step) {
          learn(rank, step);
          check(rank, step);
          RankState& state = ranks_[as_index(rank)];
          state.now[as_index(rank)] = state.num_done = step + 1;
          leave(rank);
        });
    if (done != num_steps) throw InternalError("Programs without a deadlock can't be ordered");
    return early_;
  }

 private:
  struct RankState {
    Clock now;
    int num_done = 0;
    std::size_t num_arrivals = 0;  // that were learned
    std::size_t num_refills = 0;   // that were checked
    std::vector<std::size_t> send_lanes;
    std::vector<std::vector<Clock>> carried;  // by lane and sequence, until it is learned
  };

  // The next message that the rank's step is sure of.
  std::optional<Wait> first_wait(Rank rank) const {
    const auto& proof = proofs_[as_index(rank)];
    const RankState& state = ranks_[as_index(rank)];
    for (std::size_t i = state.num_arrivals;
         i < proof.arrivals.size() && proof.arrivals[i].step == state.num_done; ++i) {
      const Arrival& arrival = proof.arrivals[i];
      const MessageEnds::End sender = ends_.peer(rank, arrival.lane);
      // Later Sends of a lane leave no earlier.
      const int steps =
          proofs_[as_index(sender.rank)].transfers[sender.lane].steps[as_index(arrival.end - 1)];
      if (ranks_[as_index(sender.rank)].num_done < steps) return Wait{sender.rank, steps};
    }
    return std::nullopt;
  }

  void learn(Rank rank, int step) {
    const auto& proof = proofs_[as_index(rank)];
    RankState& state = ranks_[as_index(rank)];
    for (; state.num_arrivals < proof.arrivals.size() &&
           proof.arrivals[state.num_arrivals].step == step;
         ++state.num_arrivals) {
      const Arrival& arrival = proof.arrivals[state.num_arrivals];
      const MessageEnds::End sender = ends_.peer(rank, arrival.lane);
      auto& carried = ranks_[as_index(sender.rank)].carried[sender.lane];
      for (int k = arrival.begin; k < arrival.end; ++k) {
        const Clock clock = std::exchange(carried[as_index(k)], {});
        for (std::size_t i = 0; i < clock.size(); ++i)
          state.now[i] = std::max(state.now[i], clock[i]);
      }
    }
  }

  void check(Rank rank, int step) {
    const auto& proof = proofs_[as_index(rank)];
    RankState& state = ranks_[as_index(rank)];
    for (std::size_t& i = state.num_refills; i < proof.refills.size() && proof.step_of[i] == step;
         ++i) {
      if (!is_known(rank, proof.refills[i].send) && !early_) early_ = std::pair(rank, i);
    }
  }

  bool is_known(Rank rank, std::size_t send) const {
    const Instruction& instruction = programs_[as_index(rank)].instructions[send];
    const int sequence = std::get<Send>(instruction.op).sequence;
    const MessageEnds::End receiver = ends_.peer(rank, as_index(instruction.lane));
    const int step =
        proofs_[as_index(receiver.rank)].transfers[receiver.lane].steps[as_index(sequence)];
    return step >= 0 && ranks_[as_index(rank)].now[as_index(receiver.rank)] > step;
  }

  // The Sends that no later step is needed for.
  void leave(Rank rank) {
    RankState& state = ranks_[as_index(rank)];
    for (const std::size_t lane : state.send_lanes) {
      const auto& steps = proofs_[as_index(rank)].transfers[lane].steps;
      auto& carried = state.carried[lane];
      while (carried.size() < steps.size() && steps[carried.size()] <= state.num_done)
        carried.push_back(state.now);
    }
  }

  std::span<const Program> programs_;
  std::span<const RankProof> proofs_;
  const MessageEnds& ends_;
  std::vector<RankState> ranks_;
  std::optional<std::pair<Rank, std::size_t>> early_;
};

}  // namespace

MaybeFinding find_early_refill(std::span<const Program> programs, std::span<const RankProof> proofs,
                               const MessageEnds& ends) {
  const auto early = KnownArrivals(programs, proofs, ends).run();
  if (!early) return std::nullopt;
  const Program& program = programs[as_index(early->first)];
  const SlotRefill& refill = proofs[as_index(early->first)].refills[early->second];
  return find(Flaw::kRace, program, {refill.send, refill.run},
              concat(name_of(program, refill.run), " may fill the slot before the end of ",
                     name_of(program, refill.send),
                     ": nothing that came back shows that the message has arrived"));
}

}  // namespace pipert

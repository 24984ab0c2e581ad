#include "analysis/deadlock.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "analysis/transfers.h"
#include "analysis/wait_cycle.h"
#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// Each action is two steps: take and compute, then send. Step 2i is the first of position i, step
// 2i+1 the second. Of two halves that run jointly the first sends only after the second has taken.
class Steps {
 public:
  explicit Steps(const PairStarts& joint) : joint_(joint) {}

  int take(Place place) const { return 2 * place.position - (ends_pair(place) ? 1 : 0); }
  int send(Place place) const { return 2 * place.position + (begins_pair(place) ? 2 : 1); }
  // Whose step it is.
  Place place_of(Rank rank, int step) const {
    const Place place{rank, step / 2};
    if (step % 2 == 1 && begins_pair(place)) return {rank, place.position + 1};
    if (step % 2 == 0 && ends_pair(place)) return {rank, place.position - 1};
    return place;
  }

 private:
  bool begins_pair(Place place) const {
    return !joint_.empty() && place.position >= 0 &&
           joint_[as_index(place.rank)][as_index(place.position)];
  }
  bool ends_pair(Place place) const { return begins_pair({place.rank, place.position - 1}); }

  const PairStarts& joint_;
};

// What holds a step back. A step of a collective waits for all its ranks; walk() knows waits for
// one rank alone, so each collective is a rank of its own that waits for one part after the other.
struct Hold {
  std::optional<WaitReason> reason;
  Place other;  // where the wait ends; of a collective: nothing
  Wait wait;
};

class Deadlock {
 public:
  Deadlock(const Schedule& schedule, const PairStarts& joint, const ActionIndex& index,
           std::vector<Collective> collectives, const VerifyOptions& options)
      : schedule_(schedule),
        steps_(joint),
        capacity_(options.capacity),
        collectives_(std::move(collectives)) {
    if (options.send_mode == SendMode::kRendezvous) capacity_ = 0;
    for (const auto& actions : schedule.ranks) {
      holds_.emplace_back(2 * actions.size());
    }
    const auto transfers = transfers_of(schedule, index);
    for (const Transfer& transfer : transfers) hold_receiver(transfer);
    for (const Collective& collective : collectives_) hold_parts(collective);
    if (!capacity_) return;
    if (*capacity_ == 0) {
      for (const Transfer& transfer : transfers) hold_sender_for_receiver(transfer);
    } else {
      hold_senders_for_room(transfers);
    }
  }

  Verdict run() {
    std::vector<int> num_steps;
    for (const auto& holds : holds_) num_steps.push_back(static_cast<int>(holds.size()));
    done_ = walk(
        num_steps,
        [this](Rank rank, int step) -> std::optional<Wait> {
          const Hold& hold = holds_[as_index(rank)][as_index(step)];
          return hold.reason ? std::optional(hold.wait) : std::nullopt;
        },
        [](Rank, int) {});
    if (done_ == num_steps) return {};
    return describe(shortest_cycle(stuck_ranks()));
  }

 private:
  bool rendezvous() const { return capacity_ && *capacity_ == 0; }

  Hold& hold_at(Place place, int step) { return holds_[as_index(place.rank)][as_index(step)]; }

  void hold_receiver(const Transfer& transfer) {
    const Place& sender = transfer.sender;
    const int steps = steps_.send(sender) + (rendezvous() ? 0 : 1);
    hold_at(transfer.receiver, steps_.take(transfer.receiver)) = {
        WaitReason::kMessage, sender, {sender.rank, steps}};
  }

  void hold_sender_for_receiver(const Transfer& transfer) {
    const Place& receiver = transfer.receiver;
    hold_at(transfer.sender, steps_.send(transfer.sender)) = {
        WaitReason::kReceiver, receiver, {receiver.rank, steps_.take(receiver)}};
  }

  void hold_parts(const Collective& collective) {
    const auto joint = static_cast<Rank>(holds_.size());
    auto& holds = holds_.emplace_back();
    for (const Place& part : collective.parts) {
      const int come = steps_.take(part) + 1;
      holds.push_back({WaitReason::kCollective, part, {part.rank, come}});
      const int all = static_cast<int>(collective.parts.size());
      hold_at(part, steps_.send(part)) = {WaitReason::kCollective, {}, {joint, all}};
    }
  }

  // A message is taken in the receiver's own order, which is known, so the n-th send of an edge has
  // room once the (n - capacity)-th take of that edge is done.
  void hold_senders_for_room(const std::vector<Transfer>& transfers) {
    struct Edge {
      std::vector<Place> sends;
      std::vector<Place> takes;
    };
    std::map<std::pair<Rank, Rank>, Edge> edges;
    for (const Transfer& transfer : transfers) {
      Edge& edge = edges[{transfer.sender.rank, transfer.receiver.rank}];
      edge.sends.push_back(transfer.sender);
      edge.takes.push_back(transfer.receiver);
    }
    for (auto& [ranks, edge] : edges) {
      std::sort(edge.sends.begin(), edge.sends.end(),
                [](const Place& a, const Place& b) { return a.position < b.position; });
      for (std::size_t n = as_index(*capacity_); n < edge.sends.size(); ++n) {
        const Place& take = edge.takes[n - as_index(*capacity_)];
        hold_at(edge.sends[n], steps_.send(edge.sends[n])) = {
            WaitReason::kRoom, take, {take.rank, steps_.take(take) + 1}};
      }
    }
  }

  const Hold& hold_of(Rank rank) const {
    return holds_[as_index(rank)][as_index(done_[as_index(rank)])];
  }

  bool is_stuck(Rank rank) const {
    return done_[as_index(rank)] < static_cast<int>(holds_[as_index(rank)].size());
  }

  // The collective that a stuck rank waits in; nothing if it waits for one rank alone.
  std::optional<int> collective_of(Rank rank) const {
    const Hold& hold = hold_of(rank);
    if (hold.reason != WaitReason::kCollective) return std::nullopt;
    return hold.wait.rank - schedule_.num_ranks();
  }

  StuckRanks stuck_ranks() const {
    StuckRanks stuck;
    for (Rank rank = 0; rank < schedule_.num_ranks(); ++rank) {
      const auto collective = is_stuck(rank) ? collective_of(rank) : std::nullopt;
      const bool waits_for_one = is_stuck(rank) && !collective;
      stuck.awaited.push_back(waits_for_one ? hold_of(rank).wait.rank : StuckRanks::kNone);
      stuck.collective.push_back(collective.value_or(StuckRanks::kNone));
    }
    for (const Collective& collective : collectives_) {
      auto& absent = stuck.absent.emplace_back();
      for (const Place& part : collective.parts) {
        const bool has_come = done_[as_index(part.rank)] > steps_.take(part);
        if (!has_come) absent.push_back(part.rank);
      }
    }
    return stuck;
  }

  const Action& action_at(Place place) const {
    return schedule_.ranks[as_index(place.rank)][as_index(place.position)];
  }

  // Where the wait of `rank` for `next` ends.
  Place target_of(Rank rank, Rank next) const {
    const auto collective = collective_of(rank);
    if (!collective) return hold_of(rank).other;
    const auto& parts = collectives_[as_index(*collective)].parts;
    return *std::find_if(parts.begin(), parts.end(),
                         [next](const Place& part) { return part.rank == next; });
  }

  Verdict describe(const std::vector<Rank>& cycle) const {
    Verdict verdict{Defect::kDeadlock, concat("deadlock: rank ", cycle.front())};
    Counterexample& counterexample = verdict.counterexample;
    std::vector<Place> targets;
    for (std::size_t i = 0; i < cycle.size(); ++i) {
      const Place here = steps_.place_of(cycle[i], done_[as_index(cycle[i])]);
      const Place target = targets.emplace_back(target_of(cycle[i], cycle[(i + 1) % cycle.size()]));
      const std::string reason = describe(*hold_of(here.rank).reason, to_string(action_at(target)));
      verdict.message += concat(i == 0 ? " at " : ", which at ", to_string(action_at(here)), " ",
                                reason, " on rank ", target.rank);
      counterexample.add(here, action_at(here), Role::kCulprit, reason);
    }
    for (std::size_t i = 0; i < cycle.size(); ++i) {
      const auto next = static_cast<int>((i + 1) % cycle.size());
      const WaitReason reason = *hold_of(cycle[i]).reason;
      int target = next;
      if (targets[i] != counterexample.places[as_index(next)].place) {
        target = static_cast<int>(counterexample.places.size());
        counterexample.add(targets[i], action_at(targets[i]), Role::kRelated);
      }
      counterexample.waits.push_back({static_cast<int>(i), target, reason});
    }
    if (rendezvous()) verdict.message += " (a send waits for its receive)";
    if (capacity_ && !rendezvous()) {
      verdict.message += concat(" (capacity ", *capacity_, " on each edge)");
    }
    return verdict;
  }

  static std::string describe(WaitReason reason, const std::string& other) {
    switch (reason) {
      case WaitReason::kInput:
      case WaitReason::kMessage:
      case WaitReason::kCollective:
        return concat("waits for ", other);
      case WaitReason::kRoom:
        return concat("waits to send until ", other, " has taken its input");
      case WaitReason::kReceiver:
        return concat("waits to send until ", other, " is reached");
    }
    throw InternalError("a rank is stuck and waits for nothing");
  }

  const Schedule& schedule_;
  Steps steps_;
  std::optional<int> capacity_;
  std::vector<Collective> collectives_;
  std::vector<std::vector<Hold>> holds_;  // by rank (behind them, the collectives), then by step
  std::vector<int> done_;                 // by rank: the steps done
};

}  // namespace

Verdict check_deadlock(const Schedule& schedule, const PairStarts& joint, const ActionIndex& index,
                       const Collectives& collectives, const VerifyOptions& options) {
  return Deadlock(schedule, joint, index, collectives.all(), options).run();
}

}  // namespace pipert

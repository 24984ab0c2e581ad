#include "analysis/deadlock.h"

#include <algorithm>
#include <map>
#include <utility>

#include "analysis/transfers.h"
#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// Each action is two steps: take and compute, then send. Step 2i is the first of position i, step
// 2i+1 the second.
int take_step(int position) { return 2 * position; }
int send_step(int position) { return 2 * position + 1; }

enum class Need : std::uint8_t {
  kNothing,
  kMessage,   // that the message was sent (rendezvous: that its sender has come to send it)
  kRoom,      // that an earlier message of the edge was taken
  kReceiver,  // rendezvous: that the receiver has come to take the message
};

struct Hold {
  Need need = Need::kNothing;
  Place other;  // where the wait ends
  Wait wait;
};

class Deadlock {
 public:
  Deadlock(const Schedule& schedule, const ActionIndex& index, const VerifyOptions& options)
      : schedule_(schedule), capacity_(options.capacity) {
    if (options.send_mode == SendMode::kRendezvous) capacity_ = 0;
    for (const auto& actions : schedule.ranks) {
      holds_.emplace_back(2 * actions.size());
    }
    const auto transfers = transfers_of(schedule, index);
    for (const Transfer& transfer : transfers) hold_receiver(transfer);
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
          return hold.need == Need::kNothing ? std::nullopt : std::optional(hold.wait);
        },
        [](Rank, int) {});
    if (done_ == num_steps) return {};
    return {Defect::kDeadlock, describe(shortest_cycle())};
  }

 private:
  bool rendezvous() const { return capacity_ && *capacity_ == 0; }

  Hold& hold_at(Place place, int step) { return holds_[as_index(place.rank)][as_index(step)]; }

  void hold_receiver(const Transfer& transfer) {
    const Place& sender = transfer.sender;
    const int steps = send_step(sender.position) + (rendezvous() ? 0 : 1);
    hold_at(transfer.receiver, take_step(transfer.receiver.position)) = {
        Need::kMessage, sender, {sender.rank, steps}};
  }

  void hold_sender_for_receiver(const Transfer& transfer) {
    const Place& receiver = transfer.receiver;
    hold_at(transfer.sender, send_step(transfer.sender.position)) = {
        Need::kReceiver, receiver, {receiver.rank, take_step(receiver.position)}};
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
        hold_at(edge.sends[n], send_step(edge.sends[n].position)) = {
            Need::kRoom, take, {take.rank, take_step(take.position) + 1}};
      }
    }
  }

  const Hold& hold_of(Rank rank) const {
    return holds_[as_index(rank)][as_index(done_[as_index(rank)])];
  }

  // Each stuck rank waits for exactly one other, itself stuck: following them must end in a cycle.
  std::vector<Rank> shortest_cycle() const {
    std::vector<Rank> shortest;
    std::vector<Rank> seen_from(holds_.size(), -1);
    for (Rank first = 0; first < schedule_.num_ranks(); ++first) {
      if (done_[as_index(first)] == static_cast<int>(holds_[as_index(first)].size())) continue;
      Rank rank = first;
      while (seen_from[as_index(rank)] < 0) {
        seen_from[as_index(rank)] = first;
        rank = hold_of(rank).wait.rank;
      }
      if (seen_from[as_index(rank)] != first) continue;  // ends in a cycle that is known
      std::vector<Rank> cycle = {rank};
      for (Rank next = hold_of(rank).wait.rank; next != rank; next = hold_of(next).wait.rank) {
        cycle.push_back(next);
      }
      if (shortest.empty() || cycle.size() < shortest.size()) shortest = std::move(cycle);
    }
    std::rotate(shortest.begin(), std::min_element(shortest.begin(), shortest.end()),
                shortest.end());
    return shortest;
  }

  const Action& action_at(Place place) const {
    return schedule_.ranks[as_index(place.rank)][as_index(place.position)];
  }

  std::string describe(const std::vector<Rank>& cycle) const {
    std::string out = concat("deadlock: rank ", cycle.front());
    for (std::size_t i = 0; i < cycle.size(); ++i) {
      const Place here{cycle[i], done_[as_index(cycle[i])] / 2};
      out += concat(i == 0 ? " at " : ", which at ", to_string(action_at(here)),
                    describe(hold_of(here.rank)));
    }
    if (rendezvous()) out += " (a send waits for its receive)";
    if (capacity_ && !rendezvous()) out += concat(" (capacity ", *capacity_, " on each edge)");
    return out;
  }

  std::string describe(const Hold& hold) const {
    const std::string other = to_string(action_at(hold.other));
    switch (hold.need) {
      case Need::kMessage:
        return concat(" waits for ", other, " on rank ", hold.other.rank);
      case Need::kRoom:
        return concat(" waits to send until ", other, " has taken its input on rank ",
                      hold.other.rank);
      case Need::kReceiver:
        return concat(" waits to send until ", other, " is reached on rank ", hold.other.rank);
      case Need::kNothing:
        break;
    }
    throw InternalError("a rank is stuck and waits for nothing");
  }

  const Schedule& schedule_;
  std::optional<int> capacity_;
  std::vector<std::vector<Hold>> holds_;  // by rank, then by step
  std::vector<int> done_;                 // by rank: the steps done
};

}  // namespace

Verdict check_deadlock(const Schedule& schedule, const ActionIndex& index,
                       const VerifyOptions& options) {
  return Deadlock(schedule, index, options).run();
}

}  // namespace pipert

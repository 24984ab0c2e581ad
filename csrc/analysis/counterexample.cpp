#include "analysis/counterexample.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/index.h"

namespace pipert {
namespace {

constexpr int kContext = 2;         // actions shown on each side of a place
constexpr int kMemoryContext = 10;  // shown before the one that passes the limit

// Where an action that isn't there could stand: behind the last of what comes before it on its
// rank, the same stage's forward of the microbatch for a backward, else what the stage did last of
// the kind before this microbatch.
int position_for(const Action& action, const std::vector<Action>& actions) {
  int behind_own = -1;
  int behind_kind = -1;
  for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
    const Action& other = actions[as_index(i)];
    if (other.stage != action.stage) continue;
    if (!has_microbatch(action.kind)) behind_own = i;
    if (other.microbatch == action.microbatch && other.kind < action.kind) behind_own = i;
    if (other.microbatch < action.microbatch && other.kind == action.kind) behind_kind = i;
  }
  return std::max(behind_own, behind_kind) + 1;
}

// By rank: the positions to be shown.
std::map<Rank, std::set<int>> positions_shown(const Counterexample& counterexample,
                                              const Schedule& schedule) {
  std::map<Rank, std::set<int>> shown;
  for (const InvolvedPlace& involved : counterexample.places) {
    const auto [rank, position] = involved.place;
    if (rank < 0 || rank >= schedule.num_ranks()) continue;
    if (!shown.contains(rank) && shown.size() == as_index(kMostWindows)) continue;
    const int before = counterexample.memory_limit ? kMemoryContext : kContext;
    const int after = involved.role == Role::kAbsent ? kContext - 1 : kContext;
    const int last = static_cast<int>(schedule.ranks[as_index(rank)].size()) - 1;
    auto& positions = shown[rank];
    const int end = std::min(last, position + after);
    for (int i = std::max(0, position - before); i <= end; ++i) positions.insert(i);
  }
  return shown;
}

// A gap of one action takes no less room than the action.
void close_gaps(std::set<int>& positions) {
  for (auto it = positions.begin(); it != positions.end(); ++it) {
    const auto next = std::next(it);
    if (next != positions.end() && *next == *it + 2) positions.insert(*it + 1);
  }
}

// By position in `apart`, which has each overlapped pair as two actions: that in `original`.
class Positions {
 public:
  Positions(const Schedule& apart, const Schedule& original) : apart_(apart), original_(original) {}

  int operator()(Rank rank, int position) {
    if (rank < 0 || rank >= original_.num_ranks() || position < 0) return position;
    auto& known = known_[rank];
    if (known.empty()) {
      const bool same = apart_.ranks[as_index(rank)].size() == size_of(rank);
      for (int i = 0; i < static_cast<int>(size_of(rank)); ++i) {
        const auto& action = original_.ranks[as_index(rank)][as_index(i)];
        known.push_back(i);
        if (!same && action.kind == ActionKind::kOverlap) known.push_back(i);
      }
      known.push_back(static_cast<int>(size_of(rank)));
    }
    return known[std::min(as_index(position), known.size() - 1)];
  }

 private:
  std::size_t size_of(Rank rank) const { return original_.ranks[as_index(rank)].size(); }

  const Schedule& apart_;
  const Schedule& original_;
  std::map<Rank, std::vector<int>> known_;
};

}  // namespace

void complete_counterexample(Counterexample& counterexample, const Schedule& schedule,
                             const Schedule& original, const std::vector<double>& memory) {
  for (InvolvedPlace& involved : counterexample.places) {
    auto& [rank, position] = involved.place;
    if (rank < 0 || rank >= schedule.num_ranks()) continue;
    const auto& actions = schedule.ranks[as_index(rank)];
    if (involved.role == Role::kAbsent) {
      position = position_for(involved.action, actions);
    } else {
      involved.action = actions[as_index(position)];  // it may have been found by less than it says
    }
  }
  Positions original_position(schedule, original);
  for (auto& [rank, positions] : positions_shown(counterexample, schedule)) {
    close_gaps(positions);
    Window window{.rank = rank,
                  .num_actions = static_cast<int>(original.ranks[as_index(rank)].size()),
                  .entries = {}};
    for (const int i : positions) {
      const Action& action = schedule.ranks[as_index(rank)][as_index(i)];
      const double alive = as_index(i) < memory.size() ? memory[as_index(i)] : 0.0;
      window.entries.push_back({original_position(rank, i), action, alive});
    }
    counterexample.windows.push_back(std::move(window));
  }
  for (InvolvedPlace& involved : counterexample.places) {
    involved.place.position = original_position(involved.place.rank, involved.place.position);
  }
}

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kCulprit:
      return "culprit";
    case Role::kAbsent:
      return "absent";
    case Role::kRelated:
      return "related";
  }
  return "culprit";
}

std::string_view reason_name(WaitReason reason) {
  switch (reason) {
    case WaitReason::kInput:
      return "input";
    case WaitReason::kMessage:
      return "message";
    case WaitReason::kRoom:
      return "room";
    case WaitReason::kReceiver:
      return "receiver";
    case WaitReason::kCollective:
      return "collective";
  }
  return "input";
}

}  // namespace pipert

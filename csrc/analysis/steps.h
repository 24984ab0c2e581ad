// Steps: a schedule as it is run on paper: for each rank its actions, with what is known of their
// times so far. Filled by asynchronous_run or blocking_run.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "analysis/costs.h"
#include "analysis/network.h"
#include "analysis/stage_messages.h"
#include "analysis/timeline.h"
#include "base/index.h"

namespace pipert {

struct Step {
  // No earlier than this as far as messages go; kNotSent: until all of them have arrived. Once the
  // step has run: when it began.
  double start = 0.0;
  double end = 0.0;
  Place reader;  // the step that takes its message, on another rank; none: it sends none
  Place before;  // the step that it had to wait for
};

inline constexpr double kNotSent = -1.0;

// Of a step that takes several messages.
struct Arrivals {
  int num_awaited = 1;
  double latest = 0.0;
  Place before;  // of the latest
};

struct Steps {
  const Schedule& schedule;
  const Costs& costs;
  std::optional<StageMessages> stage_messages;  // with skips: else the chain's are all there are
  std::vector<std::vector<Step>> ranks;         // by rank, then by position
  // With skips alone, by key_of(step): who takes the messages that it sends beside its first, and
  // what has come of several that it takes.
  std::unordered_map<std::int64_t, std::vector<Place>> further_readers;
  std::unordered_map<std::int64_t, Arrivals> arrivals;
  bool keeps_messages = false;
  std::vector<std::vector<MessageSpan>> messages;  // by reader's rank, places are those of steps

  Step& at(Place place) { return ranks[as_index(place.rank)][as_index(place.position)]; }
  const Step& at(Place place) const {
    return ranks[as_index(place.rank)][as_index(place.position)];
  }
  const Action& action_at(Place place) const {
    return schedule.ranks[as_index(place.rank)][as_index(place.position)];
  }
  double duration_at(Place place) const {
    return duration_of(action_at(place), costs, schedule.num_slices);
  }
  static std::int64_t key_of(Place place) {
    return (std::int64_t{place.rank} << 32) + place.position;
  }

  // visit(reader), for each of the step's messages, the nearest reader's first.
  template <typename Visit>
  void for_each_reader(Place sender, Visit visit) const {
    const Place first = at(sender).reader;
    if (!first.exists()) return;
    visit(first);
    if (further_readers.empty()) return;
    const auto further = further_readers.find(key_of(sender));
    if (further == further_readers.end()) return;
    for (const Place reader : further->second) visit(reader);
  }
  // Messages that have not arrived.
  int num_awaited(Place reader) const;
  int num_steps(Rank rank) const { return static_cast<int>(ranks[as_index(rank)].size()); }

  // Puts a step's message onto the network at `ready`, and tells its reader.
  Transmission send(Network& network, Place sender, Place reader, double ready, Place cause);

 private:
  void tell(Place reader, const Transmission& sent);
};

// The action that makes what a SEND sends, or that reads what a RECV takes.
Place compute_of(const Action& transfer, const ActionIndex& index);

// Nothing run yet. In a lowered schedule the sender of a message to a neighbour is its SEND; its
// reader is the RECV if transfers are blocking, else the action that needs it. The schedule and the
// costs must outlive the steps. REQUIRES overlapped pairs taken apart, a schedule that verify()
// accepts.
Steps make_steps(const Schedule& schedule, const Costs& costs, bool keeps_messages);

// Runs all steps, each as soon as its rank is free and its messages have arrived. O(steps), or
// O(steps log ranks) if ranks share a link.
void run_asynchronous(Steps& steps);

// Runs the steps as Note [Transfers that block] says. Returns false if ranks wait for each other.
// O(steps log ranks).
bool run_blocking(Steps& steps);

}  // namespace pipert

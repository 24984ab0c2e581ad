// Steps: a schedule as it is run on paper: for each rank its actions, with what is known of their
// times so far. Filled by asynchronous_run or blocking_run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "analysis/costs.h"
#include "analysis/network.h"
#include "analysis/stage_messages.h"
#include "analysis/timeline.h"
#include "base/index.h"

namespace pipert {

struct Step {
  // No earlier than this as far as the messages go that have arrived. Once the step has run: when
  // it began.
  double start = 0.0;
  double end = 0.0;
  Place before;                  // the step that it had to wait for
  std::int32_t num_awaited = 0;  // messages that have not arrived yet
  std::uint32_t first_sent = 0;  // where its messages begin in Steps::readers
};

struct Steps {
  const Schedule& schedule;
  const Costs& costs;
  const StageMessages stage_messages;
  std::vector<std::vector<Step>> ranks;  // by rank, then by position
  // Of all messages, by their senders' ranks and positions: the steps that take them.
  std::vector<Place> readers;
  std::vector<std::uint32_t> ends_of_sent;  // by rank, in `readers`
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
  // Those that take the step's messages, each on another rank.
  std::span<const Place> readers_of(Place sender) const {
    const std::size_t first = at(sender).first_sent;
    const auto& of_rank = ranks[as_index(sender.rank)];
    const std::size_t next = as_index(sender.position + 1);
    const std::size_t end =
        next < of_rank.size() ? of_rank[next].first_sent : ends_of_sent[as_index(sender.rank)];
    return std::span(readers).subspan(first, end - first);
  }
  int num_steps(Rank rank) const { return static_cast<int>(ranks[as_index(rank)].size()); }

  // Puts a step's message onto the network at `ready`, and tells its reader.
  Transmission send(Network& network, Place sender, Place reader, double ready, Place cause);
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

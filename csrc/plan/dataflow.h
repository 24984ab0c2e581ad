// Dataflow: the Runs of a schedule and who reads whose result. Immutable; any number of threads may
// read it. Moves to the host and back count as Runs here: they stand among them, and neither read
// nor make a message.
//
// Data goes along a chain of stages, so each Run reads the result of at most one other and is read
// by at most one: flat arrays, a few words for each Run.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "analysis/action_index.h"
#include "base/index.h"
#include "ir/schedule.h"
#include "plan/program.h"

namespace pipert {

class Dataflow {
 public:
  // REQUIRES a schedule that verify() accepts and that outlives this. ValueError for an action that
  // is for a whole stage: what a pipeline alone gives no meaning to. O(actions).
  explicit Dataflow(const Schedule& schedule);
  explicit Dataflow(Schedule&&) = delete;

  int num_ranks() const { return schedule().num_ranks(); }
  // The compute actions and moves of `rank`, overlapped pairs taken apart. A Place below is one of
  // these: the `position`-th Run of its rank.
  std::span<const Action> runs(Rank rank) const { return schedule().ranks[as_index(rank)]; }
  const Action& run(Place place) const { return runs(place.rank)[as_index(place.position)]; }

  // The Run whose result this one reads; Place{} if it reads none.
  Place producer_of(Place run) const { return producers_[flat(run)]; }
  // The Run that reads this one's result; Place{} if nobody does.
  Place consumer_of(Place run) const { return consumers_[flat(run)]; }
  // Of a Run that is read on another rank: the place of its result among all messages of their
  // edge, in the order in which the sender makes them.
  int sequence_of(Place run) const { return sequences_[flat(run)]; }
  // The result's name. REQUIRES a Run that somebody reads.
  MessageKey message_of(Place run) const;

 private:
  const Schedule& schedule() const { return alone_ ? *alone_ : given_; }
  std::size_t flat(Place run) const { return begins_[as_index(run.rank)] + as_index(run.position); }
  void connect();
  void number_messages();

  const Schedule& given_;
  std::optional<Schedule> alone_;    // the Runs, where the schedule has anything else
  std::vector<std::size_t> begins_;  // by rank: the index of its first Run in the next three
  std::vector<Place> producers_;
  std::vector<Place> consumers_;
  std::vector<int> sequences_;
};

}  // namespace pipert

// Dataflow: the Runs of a schedule and who reads whose result. Immutable; any number of threads may
// read it. Moves to the host and back count as Runs here: they stand among them, and neither read
// nor make a message.
//
// Note [Deliveries]
// What a Run makes is delivered to each rank that has readers of it, once: to the first of them, by
// a message or, on its own rank, in a local slot. That reader keeps it, in a local slot, for the
// next reader on its rank, and so on. So each delivery is one slot's life, with one writer and one
// reader, and a rank pays nothing for what it hands to itself. On a rank the readers run in the
// order of their stages, away from the maker: by the chain each of them needs the one before it.
//
// In a chain of stages each Run reads one delivery at most and makes one: flat arrays, a few words
// for each Run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "analysis/action_index.h"
#include "base/index.h"
#include "ir/schedule.h"
#include "ir/stage_links.h"
#include "plan/program.h"

namespace pipert {

using DeliveryId = std::int32_t;

inline constexpr DeliveryId kNoDelivery = -1;

struct Delivery {
  Place writer;  // the Run that made it, or read it and kept it
  Place reader;
  StageIndex stage = 0;  // that made it
  int sequence = -1;     // among the messages of its edge, in the order in which the sender makes
                         // them; -1 if it stays on its rank
  DeliveryId kept = kNoDelivery;  // to the next reader on the same rank

  bool crosses() const { return writer.rank != reader.rank; }
};

class Dataflow {
 public:
  // REQUIRES a schedule that verify() accepts and that outlives this. ValueError for an action that
  // is for a whole stage: what a pipeline alone gives no meaning to; for a graph with a stage that
  // isn't there. `joint_pairs`: see LowerOptions. O(actions and deliveries).
  explicit Dataflow(const Schedule& schedule, bool joint_pairs = false,
                    const StageGraph& stage_graph = {});
  explicit Dataflow(Schedule&&, bool joint_pairs = false, const StageGraph& = {}) = delete;

  int num_ranks() const { return schedule().num_ranks(); }
  // The compute actions and moves of `rank`, overlapped pairs taken apart. A Place below is one of
  // these: the `position`-th Run of its rank.
  std::span<const Action> runs(Rank rank) const { return schedule().ranks[as_index(rank)]; }
  const Action& run(Place place) const { return runs(place.rank)[as_index(place.position)]; }

  // Whether this Run goes jointly with the next one of its rank.
  bool begins_pair(Place run) const { return !pairs_.empty() && pairs_[flat(run)]; }

  const Delivery& delivery(DeliveryId id) const { return deliveries_[as_index(id)]; }
  // What the Run reads, made by the nearest stage first.
  std::span<const DeliveryId> reads_of(Place run) const {
    const std::size_t at = flat(run);
    return std::span(reads_).subspan(read_begins_[at], read_begins_[at + 1] - read_begins_[at]);
  }
  // The deliveries of its result, to the nearest stage first: the ids from first_write() on.
  std::span<const Delivery> writes_of(Place run) const {
    const std::size_t at = flat(run);
    return std::span(deliveries_)
        .subspan(write_begins_[at], write_begins_[at + 1] - write_begins_[at]);
  }
  DeliveryId first_write(Place run) const {
    return static_cast<DeliveryId>(write_begins_[flat(run)]);
  }
  // The message's name.
  MessageKey message_of(const Delivery& delivery) const;

 private:
  const Schedule& schedule() const { return alone_ ? *alone_ : given_; }
  std::size_t flat(Place run) const { return begins_[as_index(run.rank)] + as_index(run.position); }
  std::size_t num_runs() const { return write_begins_.size() - 1; }
  // A reader on a rank that has the message already, by the delivery that brings it there.
  struct LaterReader {
    DeliveryId first = kNoDelivery;
    Place reader;
  };

  void find_pairs();
  std::size_t count_deliveries(const StageLinks& links) const;
  std::vector<LaterReader> deliver(const StageLinks& links);
  void number_messages();
  void keep(std::span<const LaterReader> later);
  void find_reads();

  const Schedule& given_;
  std::optional<Schedule> alone_;    // the Runs, where the schedule has anything else
  std::vector<std::size_t> begins_;  // by rank: the index of its first Run in the next three
  std::vector<bool> pairs_;          // by Run; empty where none go jointly
  // By Run, and one more: where its results begin in deliveries_, and what it reads in reads_.
  std::vector<std::uint32_t> write_begins_;
  std::vector<std::uint32_t> read_begins_;
  std::vector<Delivery> deliveries_;  // all results, Run by Run; then what is kept
  std::vector<DeliveryId> reads_;
};

}  // namespace pipert

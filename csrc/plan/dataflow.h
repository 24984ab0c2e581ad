// Dataflow: the Runs of a schedule, the messages between them, and which Run is known to come after
// which.
#pragma once

#include <span>
#include <vector>

#include "ir/schedule.h"
#include "plan/program.h"

namespace pipert {

// A Run's place: the `position`-th Run of `rank`.
struct RunId {
  Rank rank = 0;
  int position = 0;
  friend auto operator<=>(const RunId&, const RunId&) = default;
};

// One result that goes from the Run that makes it to one Run that reads it.
struct Flow {
  MessageKey message;
  RunId producer;
  RunId consumer;
  bool crosses_ranks() const { return producer.rank != consumer.rank; }
  Edge edge() const { return {producer.rank, consumer.rank}; }
};

class Dataflow {
 public:
  // REQUIRES a schedule that verify() accepts.
  explicit Dataflow(const Schedule& schedule);

  int num_ranks() const { return static_cast<int>(runs_.size()); }
  // The compute actions of `rank`, overlapped pairs taken apart.
  std::span<const Action> runs(Rank rank) const { return runs_[static_cast<std::size_t>(rank)]; }
  // In the order in which the consumer's inputs are read, resp. in no particular order.
  std::span<const Flow> flows() const { return flows_; }

  // The first Run of `flow.producer.rank` after the producer that can only start once the consumer
  // has started, so that the message is then known to have arrived; the number of Runs of that rank
  // if there is none.
  int known_received(const Flow& flow) const;

 private:
  void collect_runs(const Schedule& schedule);
  void collect_flows(const Schedule& schedule);
  void order_runs();

  std::vector<std::vector<Action>> runs_;  // by rank
  std::vector<Flow> flows_;
  // clocks_[rank][position][other]: how many Runs of `other` have surely started when this Run
  // starts.
  std::vector<std::vector<std::vector<int>>> clocks_;
};

}  // namespace pipert

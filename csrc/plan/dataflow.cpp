#include "plan/dataflow.h"

#include <algorithm>
#include <map>

#include "analysis/dependencies.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

MessageKey result_of(const Action& producer) {
  const bool is_forward = producer.kind == ActionKind::kForward;
  return {.kind = is_forward ? MessageKind::kActivation : MessageKind::kGradient,
          .stage = producer.stage,
          .microbatch = producer.microbatch};
}

}  // namespace

Dataflow::Dataflow(const Schedule& schedule) {
  collect_runs(schedule);
  collect_flows(schedule);
  order_runs();
}

void Dataflow::collect_runs(const Schedule& schedule) {
  for (const auto& actions : schedule.ranks) {
    auto& runs = runs_.emplace_back();
    for (const Action& action : actions) {
      switch (action.kind) {
        case ActionKind::kForward:
        case ActionKind::kBackward:
        case ActionKind::kInputGrad:
        case ActionKind::kWeightGrad:
          runs.push_back(action);
          break;
        case ActionKind::kOverlap:
          runs.push_back(overlapped_forward(action));
          runs.push_back(overlapped_backward(action));
          break;
        case ActionKind::kSendForward:
        case ActionKind::kRecvForward:
        case ActionKind::kSendBackward:
        case ActionKind::kRecvBackward:
          break;  // lowering derives the transfers itself
        case ActionKind::kUnshard:
        case ActionKind::kReshard:
        case ActionKind::kReduceGrad:
        case ActionKind::kRecompute:
        case ActionKind::kOffload:
        case ActionKind::kReload:
        case ActionKind::kUpdate:
          throw ValueError(
              concat("a schedule to be run must hold F, B, I, W and transfer actions only, got ",
                     to_string(action)));
      }
      if (action.slice != kWholeSequence || action.version != 0) {
        throw ValueError(
            concat("a schedule to be run must take whole sequences and use version 0 of the "
                   "weights, got ",
                   to_string(action)));
      }
    }
  }
}

void Dataflow::collect_flows(const Schedule& schedule) {
  std::map<Action, RunId> where;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    for (int i = 0; i < static_cast<int>(runs(rank).size()); ++i)
      where[runs(rank)[as_index(i)]] = {rank, i};
  }
  const BackwardForms forms(schedule);
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    for (int i = 0; i < static_cast<int>(runs(rank).size()); ++i) {
      for (const Dependency& need : dependencies(runs(rank)[as_index(i)], schedule, forms)) {
        if (!need.is_message) continue;
        flows_.push_back({result_of(need.producer), where.at(need.producer), {rank, i}});
      }
    }
  }
}

// A vector clock for each Run, filled in an order in which every input is there (the schedule is
// free of deadlock, so such an order exists).
void Dataflow::order_runs() {
  std::map<RunId, std::vector<RunId>> producers;
  for (const Flow& flow : flows_) producers[flow.consumer].push_back(flow.producer);

  clocks_.resize(runs_.size());
  const auto done = [&](const RunId& run) {
    return run.position < static_cast<int>(clocks_[as_index(run.rank)].size());
  };
  for (bool progressed = true; progressed;) {
    progressed = false;
    for (Rank rank = 0; rank < num_ranks(); ++rank) {
      auto& clocks = clocks_[as_index(rank)];
      while (clocks.size() < runs(rank).size()) {
        const RunId self{rank, static_cast<int>(clocks.size())};
        const auto& needs = producers[self];
        if (!std::all_of(needs.begin(), needs.end(), done)) break;
        std::vector<int> clock = clocks.empty() ? std::vector<int>(runs_.size(), 0) : clocks.back();
        for (const RunId& need : needs) {
          const auto& other = clocks_[as_index(need.rank)][as_index(need.position)];
          std::transform(clock.begin(), clock.end(), other.begin(), clock.begin(),
                         [](int a, int b) { return std::max(a, b); });
        }
        clock[as_index(rank)] = self.position + 1;
        clocks.push_back(std::move(clock));
        progressed = true;
      }
    }
  }
  for (std::size_t rank = 0; rank < runs_.size(); ++rank) {
    if (clocks_[rank].size() != runs_[rank].size()) {
      throw InternalError("a schedule that verify() accepted can't be ordered");
    }
  }
}

int Dataflow::known_received(const Flow& flow) const {
  const auto& clocks = clocks_[as_index(flow.producer.rank)];
  const auto first = clocks.begin() + flow.producer.position + 1;
  // Clocks only grow along a rank, so the first Run that knows is found by bisection.
  const auto found = std::partition_point(first, clocks.end(), [&](const std::vector<int>& clock) {
    return clock[as_index(flow.consumer.rank)] <= flow.consumer.position;
  });
  return static_cast<int>(found - clocks.begin());
}

}  // namespace pipert

#include "plan/dataflow.h"

#include <algorithm>
#include <utility>

#include "analysis/dependencies.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool is_plain(const Action& action) {
  return action.slice == kWholeSequence && action.version == 0;
}

// Puts out what a rank runs for `action`.
void add_runs(const Action& action, std::vector<Action>& runs) {
  switch (action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
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
    case ActionKind::kUpdate:
      throw ValueError(
          concat("a schedule to be run must hold F, B, I, W, R, OFFLOAD, RELOAD and transfer "
                 "actions only, got ",
                 to_string(action)));
  }
  if (!is_plain(action)) {
    throw ValueError(
        concat("a schedule to be run must take whole sequences and use version 0 of the weights, "
               "got ",
               to_string(action)));
  }
}

bool is_run(const Action& action) {
  switch (action.kind) {
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
      return is_plain(action);
    case ActionKind::kOverlap:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
      return false;
  }
  return false;
}

// nullopt where the schedule is made of Runs as it is: a large one is not copied.
std::optional<Schedule> runs_alone(const Schedule& schedule) {
  const bool is_alone = std::all_of(
      schedule.ranks.begin(), schedule.ranks.end(),
      [](const auto& actions) { return std::all_of(actions.begin(), actions.end(), is_run); });
  if (is_alone) return std::nullopt;
  Schedule alone{.name = schedule.name,
                 .num_microbatches = schedule.num_microbatches,
                 .num_slices = schedule.num_slices,
                 .placement = schedule.placement,
                 .ranks = {}};
  for (const auto& actions : schedule.ranks) {
    auto& runs = alone.ranks.emplace_back();
    for (const Action& action : actions) add_runs(action, runs);
  }
  return alone;
}

}  // namespace

Dataflow::Dataflow(const Schedule& schedule) : given_(schedule), alone_(runs_alone(schedule)) {
  std::size_t num_runs = 0;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    begins_.push_back(num_runs);
    num_runs += runs(rank).size();
  }
  producers_.resize(num_runs);
  consumers_.resize(num_runs);
  sequences_.resize(num_runs, -1);
  connect();
  number_messages();
}

void Dataflow::connect() {
  const ActionIndex index(schedule());
  const BackwardForms forms(schedule());
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    const auto actions = runs(rank);
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Place reader{rank, i};
      for (const Dependency& need : dependencies(actions[as_index(i)], schedule(), forms)) {
        if (!need.is_message) continue;
        const Place producer = index.find(need.producer);
        if (producer_of(reader).exists() || consumer_of(producer).exists()) {
          throw InternalError(concat(to_string(need.producer), " for ",
                                     to_string(actions[as_index(i)]), ": a second message"));
        }
        producers_[flat(reader)] = producer;
        consumers_[flat(producer)] = reader;
      }
    }
  }
}

void Dataflow::number_messages() {
  std::vector<int> counts(as_index(num_ranks()), 0);  // by destination
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    const int size = static_cast<int>(runs(rank).size());
    for (int i = 0; i < size; ++i) {
      const Place consumer = consumer_of({rank, i});
      if (!consumer.exists() || consumer.rank == rank) continue;
      sequences_[flat({rank, i})] = counts[as_index(consumer.rank)]++;
    }
    for (int i = 0; i < size; ++i) {  // not a fill: most ranks send to few
      const Place consumer = consumer_of({rank, i});
      if (consumer.exists()) counts[as_index(consumer.rank)] = 0;
    }
  }
}

MessageKey Dataflow::message_of(Place place) const {
  const Action& action = run(place);
  const bool is_forward = action.kind == ActionKind::kForward;
  return {.kind = is_forward ? MessageKind::kActivation : MessageKind::kGradient,
          .stage = action.stage,
          .microbatch = action.microbatch};
}

}  // namespace pipert

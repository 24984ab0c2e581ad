#include "plan/dataflow.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <utility>

#include "analysis/backward_forms.h"
#include "analysis/transfers.h"
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

Dataflow::Dataflow(const Schedule& schedule, bool joint_pairs, const StageGraph& stage_graph)
    : given_(schedule), alone_(runs_alone(schedule)) {
  const Placement& placement = schedule.placement;
  require_stages(stage_graph, placement.stages_per_copy());
  std::size_t num_runs = 0;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    begins_.push_back(num_runs);
    num_runs += runs(rank).size();
  }
  if (joint_pairs && alone_) find_pairs();
  write_begins_.reserve(num_runs + 1);
  const auto later =
      deliver(StageLinks(stage_graph, placement.num_stages(), placement.num_copies()));
  number_messages();
  keep(later);
  find_reads();
}

void Dataflow::find_pairs() {
  for (const auto& actions : given_.ranks) {
    for (const Action& action : actions) {
      const bool is_pair = action.kind == ActionKind::kOverlap;
      if (!is_pair && !is_run(action)) continue;
      pairs_.push_back(is_pair && can_run_jointly(action));
      if (is_pair) pairs_.push_back(false);
    }
  }
}

// Each reader of each result has one.
std::size_t Dataflow::count_deliveries(const StageLinks& links) const {
  std::size_t count = 0;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    for (const Action& action : runs(rank)) {
      if (const auto kind = result_kind(action.kind))
        count += links.readers(*kind, action.stage).size();
    }
  }
  if (count > as_index(std::numeric_limits<DeliveryId>::max()))
    throw ValueError(concat("expected fewer messages than 2^31, got ", count));
  return count;
}

std::vector<Dataflow::LaterReader> Dataflow::deliver(const StageLinks& links) {
  const ActionIndex index(schedule());
  const BackwardForms forms(schedule());
  deliveries_.reserve(count_deliveries(links));
  std::vector<LaterReader> later;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    const auto actions = runs(rank);
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const std::size_t first = deliveries_.size();
      write_begins_.push_back(static_cast<std::uint32_t>(first));
      const Action& action = actions[as_index(i)];
      const auto kind = result_kind(action.kind);
      if (!kind) continue;
      for (const StageIndex stage : links.readers(*kind, action.stage)) {
        const Place reader = reader_of(action, stage, index, forms);
        std::size_t at = first;  // the delivery to this rank
        while (at < deliveries_.size() && deliveries_[at].reader.rank != reader.rank) ++at;
        if (at < deliveries_.size()) {
          later.push_back({static_cast<DeliveryId>(at), reader});
        } else {
          deliveries_.push_back({.writer = {rank, i}, .reader = reader, .stage = action.stage});
        }
      }
    }
  }
  write_begins_.push_back(static_cast<std::uint32_t>(deliveries_.size()));
  return later;
}

void Dataflow::number_messages() {
  std::vector<int> counts(as_index(num_ranks()), 0);  // by destination
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    const std::size_t end = write_begins_[flat({rank, static_cast<int>(runs(rank).size())})];
    const auto sent = std::span(deliveries_)
                          .subspan(write_begins_[flat({rank, 0})])
                          .first(end - write_begins_[flat({rank, 0})]);
    for (Delivery& delivery : sent) {
      if (delivery.crosses()) delivery.sequence = counts[as_index(delivery.reader.rank)]++;
    }
    // Not a fill: most ranks send to few.
    for (const Delivery& delivery : sent) counts[as_index(delivery.reader.rank)] = 0;
  }
}

// `later`: of each delivery nearest stage first.
void Dataflow::keep(std::span<const LaterReader> later) {
  for (const auto& [first, reader] : later) {
    DeliveryId last = first;
    while (delivery(last).kept != kNoDelivery) last = delivery(last).kept;
    deliveries_[as_index(last)].kept = static_cast<DeliveryId>(deliveries_.size());
    deliveries_.push_back(
        {.writer = delivery(last).reader, .reader = reader, .stage = delivery(last).stage});
  }
}

void Dataflow::find_reads() {
  read_begins_.resize(write_begins_.size(), 0);
  for (const Delivery& delivery : deliveries_) ++read_begins_[flat(delivery.reader) + 1];
  std::partial_sum(read_begins_.begin(), read_begins_.end(), read_begins_.begin());
  reads_.resize(deliveries_.size());
  std::vector<std::uint32_t> next(read_begins_.begin(), read_begins_.end());
  for (std::size_t id = 0; id < deliveries_.size(); ++id)
    reads_[next[flat(deliveries_[id].reader)]++] = static_cast<DeliveryId>(id);
  for (std::size_t at = 0; at + 1 < read_begins_.size(); ++at) {
    if (read_begins_[at + 1] - read_begins_[at] < 2) continue;
    const auto nearest = [&](DeliveryId id) {
      const Delivery& each = delivery(id);
      return std::abs(each.stage - run(each.reader).stage);
    };
    std::sort(reads_.begin() + read_begins_[at], reads_.begin() + read_begins_[at + 1],
              [&](DeliveryId a, DeliveryId b) { return nearest(a) < nearest(b); });
  }
}

MessageKey Dataflow::message_of(const Delivery& delivery) const {
  const Action& reader = run(delivery.reader);
  const bool is_forward = reader.kind == ActionKind::kForward;
  return {.kind = is_forward ? MessageKind::kActivation : MessageKind::kGradient,
          .stage = delivery.stage,
          .microbatch = reader.microbatch};
}

}  // namespace pipert

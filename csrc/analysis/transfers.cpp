#include "analysis/transfers.h"

#include <algorithm>

#include "analysis/dependencies.h"
#include "base/index.h"

namespace pipert {

bool is_transfer(const Action& action) {
  switch (action.kind) {
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
      return true;
    case ActionKind::kForward:
    case ActionKind::kBackward:
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kOverlap:
    case ActionKind::kRecompute:
    case ActionKind::kOffload:
    case ActionKind::kReload:
    case ActionKind::kUpdate:
      return false;
  }
  return false;
}

bool is_lowered(const Schedule& schedule) {
  return std::any_of(schedule.ranks.begin(), schedule.ranks.end(), [](const auto& actions) {
    return std::any_of(actions.begin(), actions.end(), is_transfer);
  });
}

Place reader_of(const Action& made, StageIndex stage, const ActionIndex& index,
                const BackwardForms& forms) {
  Action action = made;
  action.stage = stage;
  if (made.kind != ActionKind::kForward)
    action.kind = forms.is_split(action) ? ActionKind::kInputGrad : ActionKind::kBackward;
  return index.find(action);
}

std::vector<Transfer> transfers_of(const Schedule& schedule, const ActionIndex& index) {
  const bool lowered = is_lowered(schedule);
  const BackwardForms forms(schedule);
  std::vector<Transfer> transfers;
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Action& action = actions[as_index(i)];
      if (lowered && !is_transfer(action)) continue;
      for (const Dependency& need : dependencies(action, schedule, forms)) {
        if (!need.is_message) continue;
        const Place sender = index.find(need.producer);
        if (sender.rank != rank) transfers.push_back({sender, {rank, i}});
      }
    }
  }
  return transfers;
}

std::vector<Transfer> skip_transfers(const Schedule& schedule, const ActionIndex& index,
                                     const StageMessages& messages) {
  const BackwardForms forms(schedule);
  std::vector<Transfer> transfers;
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Action& action = actions[as_index(i)];
      const auto kind = result_kind(action.kind);
      if (!kind) continue;
      const StageIndex neighbour = neighbour_of({.kind = *kind, .stage = action.stage});
      for (const StageMessage& message : messages.sent(*kind, action.stage)) {
        if (message.reader == neighbour) continue;
        transfers.push_back({{rank, i}, reader_of(action, message.reader, index, forms)});
      }
    }
  }
  return transfers;
}

}  // namespace pipert

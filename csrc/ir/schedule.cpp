#include "ir/schedule.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {
namespace {

// Replaces each rank's actions by what `keep` puts out for each of them.
template <typename Keep>
Schedule rewritten(const Schedule& schedule, Keep keep) {
  Schedule result{.name = schedule.name,
                  .num_microbatches = schedule.num_microbatches,
                  .num_slices = schedule.num_slices,
                  .placement = schedule.placement,
                  .ranks = {}};
  result.ranks.resize(schedule.ranks.size());
  for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
    auto& actions = result.ranks[rank];
    actions.reserve(schedule.ranks[rank].size());
    for (const Action& action : schedule.ranks[rank]) keep(action, actions);
  }
  return result;
}

}  // namespace

Schedule forward_only(const Schedule& schedule) {
  return rewritten(schedule, [](const Action& action, std::vector<Action>& out) {
    switch (action.kind) {
      case ActionKind::kForward:
      case ActionKind::kSendForward:
      case ActionKind::kRecvForward:
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
      case ActionKind::kOverlap:
        out.push_back(action.kind == ActionKind::kOverlap ? overlapped_forward(action) : action);
        out.back().version = 0;
        break;
      case ActionKind::kBackward:
      case ActionKind::kInputGrad:
      case ActionKind::kWeightGrad:
      case ActionKind::kSendBackward:
      case ActionKind::kRecvBackward:
      case ActionKind::kReduceGrad:
      case ActionKind::kRecompute:
      case ActionKind::kOffload:
      case ActionKind::kReload:
      case ActionKind::kUpdate:
        break;
    }
  });
}

Schedule split_overlaps(const Schedule& schedule) {
  return rewritten(schedule, [](const Action& action, std::vector<Action>& out) {
    if (action.kind != ActionKind::kOverlap) {
      out.push_back(action);
      return;
    }
    out.push_back(overlapped_forward(action));
    out.push_back(overlapped_backward(action));
  });
}

bool can_run_jointly(const Action& pair) {
  return pair.stage != pair.paired_stage || pair.microbatch != pair.paired_microbatch;
}

int count_microbatches(const std::vector<std::vector<Action>>& ranks) {
  Microbatch last = kNoMicrobatch;
  for (const auto& actions : ranks) {
    for (const Action& action : actions) {
      last = std::max({last, action.microbatch, action.paired_microbatch});
    }
  }
  return last + 1;
}

int count_slices(const std::vector<std::vector<Action>>& ranks) {
  Slice last = 0;
  for (const auto& actions : ranks) {
    for (const Action& action : actions) {
      last = std::max({last, action.slice, action.paired_slice});
    }
  }
  return last + 1;
}

bool is_forward_only(const Schedule& schedule) {
  return std::none_of(schedule.ranks.begin(), schedule.ranks.end(), [](const auto& actions) {
    return std::any_of(actions.begin(), actions.end(), [](const Action& action) {
      return is_compute(action.kind) && action.kind != ActionKind::kForward;
    });
  });
}

bool is_asynchronous(const Schedule& schedule) {
  return std::any_of(schedule.ranks.begin(), schedule.ranks.end(), [](const auto& actions) {
    return std::any_of(actions.begin(), actions.end(), [](const Action& action) {
      const WeightVersion at_end = action.kind == ActionKind::kUpdate ? 1 : 0;
      return std::max(action.version, action.paired_version) > at_end;
    });
  });
}

std::string to_string(const Schedule& schedule) {
  std::string out;
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    out.append("rank ").append(std::to_string(rank)).append(":");
    for (const Action& action : schedule.ranks[as_index(rank)]) {
      out.append(" ").append(to_string(action));
    }
    out.append("\n");
  }
  return out;
}

}  // namespace pipert

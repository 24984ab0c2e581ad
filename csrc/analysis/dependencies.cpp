#include "analysis/dependencies.h"

#include "base/index.h"

namespace pipert {
namespace {

std::size_t cell(const Schedule& schedule, StageIndex stage, Microbatch microbatch) {
  return as_index(stage) * as_index(schedule.num_microbatches) + as_index(microbatch);
}

class Collector {
 public:
  Collector(const Schedule& schedule, const std::vector<bool>& splits)
      : schedule_(schedule), splits_(splits) {}

  void add_all(const Action& action) {
    const StageIndex stage = action.stage;
    const Microbatch microbatch = action.microbatch;
    switch (action.kind) {
      case ActionKind::kForward:
        if (!schedule_.placement.is_first(stage)) message(forward(stage - 1, microbatch));
        break;
      case ActionKind::kBackward:
      case ActionKind::kInputGrad:
        state(forward(stage, microbatch));
        if (!schedule_.placement.is_last(stage)) message(gradient_of(stage + 1, microbatch));
        break;
      case ActionKind::kWeightGrad:
        state({.kind = ActionKind::kInputGrad, .stage = stage, .microbatch = microbatch});
        break;
      case ActionKind::kOverlap:
        add_pair(action);
        break;
      case ActionKind::kSendForward:
        state(forward(stage, microbatch));
        break;
      case ActionKind::kSendBackward:
        state(gradient_of(stage, microbatch));
        break;
      case ActionKind::kRecvForward:
        message({.kind = ActionKind::kSendForward, .stage = stage - 1, .microbatch = microbatch});
        break;
      case ActionKind::kRecvBackward:
        message({.kind = ActionKind::kSendBackward, .stage = stage + 1, .microbatch = microbatch});
        break;
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
      case ActionKind::kReduceGrad:
        break;
    }
  }

  const Dependencies& result() const { return result_; }

 private:
  // The action that makes the gradient of (stage, microbatch)'s input.
  Action gradient_of(StageIndex stage, Microbatch microbatch) const {
    const bool split = splits_[cell(schedule_, stage, microbatch)];
    return {.kind = split ? ActionKind::kInputGrad : ActionKind::kBackward,
            .stage = stage,
            .microbatch = microbatch};
  }

  void add_pair(const Action& pair) {
    const Action own_forward = overlapped_forward(pair);
    add_all(own_forward);
    Collector backward(schedule_, splits_);
    backward.add_all(overlapped_backward(pair));
    for (const Dependency& need : backward.result()) {
      if (need.producer != own_forward) result_.add(need);
    }
  }

  void message(const Action& producer) { result_.add({producer, true}); }
  void state(const Action& producer) { result_.add({producer, false}); }

  const Schedule& schedule_;
  const std::vector<bool>& splits_;
  Dependencies result_;
};

}  // namespace

Dependencies dependencies(const Action& action, const Schedule& schedule,
                          const std::vector<bool>& splits) {
  Collector collector(schedule, splits);
  collector.add_all(action);
  return collector.result();
}

std::vector<bool> split_stages(const Schedule& schedule) {
  std::vector<bool> splits(as_index(schedule.num_stages()) * as_index(schedule.num_microbatches));
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      if (action.kind == ActionKind::kInputGrad || action.kind == ActionKind::kWeightGrad) {
        splits[cell(schedule, action.stage, action.microbatch)] = true;
      } else if (action.kind == ActionKind::kOverlap &&
                 action.paired_kind == ActionKind::kInputGrad) {
        splits[cell(schedule, action.paired_stage, action.paired_microbatch)] = true;
      }
    }
  }
  return splits;
}

}  // namespace pipert

#include "analysis/dependencies.h"

namespace pipert {
namespace {

class Collector {
 public:
  // Adds to `result`, which isn't copied: there is one for each action.
  Collector(const Schedule& schedule, const BackwardForms& forms, Dependencies& result)
      : schedule_(schedule), forms_(forms), result_(result) {}

  void add_all(const Action& action) {
    switch (action.kind) {
      case ActionKind::kForward:
        if (action.slice > 0) state(of_slice(action, ActionKind::kForward, -1));
        if (!schedule_.placement.is_first(action.stage))
          message(of_stage(action, ActionKind::kForward, -1));
        break;
      case ActionKind::kBackward:
      case ActionKind::kInputGrad:
        add_activation(action);
        if (action.slice >= 0 && action.slice + 1 < schedule_.num_slices)
          state(gradient(of_slice(action, action.kind, 1)));
        if (!schedule_.placement.is_last(action.stage))
          message(gradient(of_stage(action, action.kind, 1)));
        break;
      case ActionKind::kWeightGrad:
        state(as_kind(action, ActionKind::kInputGrad));
        break;
      case ActionKind::kOverlap:
        add_pair(action);
        break;
      case ActionKind::kRecompute:
        state(as_kind(action,
                      forms_.is_offloaded(action) ? ActionKind::kReload : ActionKind::kForward));
        break;
      case ActionKind::kOffload:
      case ActionKind::kSendForward:
        state(as_kind(action, ActionKind::kForward));
        break;
      case ActionKind::kReload:
        state(as_kind(action, ActionKind::kOffload));
        break;
      case ActionKind::kSendBackward:
        state(gradient(action));
        break;
      case ActionKind::kRecvForward:
        message(of_stage(action, ActionKind::kSendForward, -1));
        break;
      case ActionKind::kRecvBackward:
        message(of_stage(action, ActionKind::kSendBackward, 1));
        break;
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
      case ActionKind::kReduceGrad:
      case ActionKind::kUpdate:
        break;
    }
  }

 private:
  static Action of_stage(const Action& action, ActionKind kind, int offset) {
    Action other = as_kind(action, kind);
    other.stage += offset;
    return other;
  }

  static Action of_slice(const Action& action, ActionKind kind, int offset) {
    Action other = as_kind(action, kind);
    other.slice = static_cast<Slice>(other.slice + offset);
    return other;
  }

  // What makes the gradient of the input of the action's stage, microbatch and slice.
  Action gradient(const Action& action) const {
    return as_kind(action,
                   forms_.is_split(action) ? ActionKind::kInputGrad : ActionKind::kBackward);
  }

  void add_activation(const Action& backward) {
    const ActionKind holder = forms_.is_recomputed(backward)  ? ActionKind::kRecompute
                              : forms_.is_offloaded(backward) ? ActionKind::kReload
                                                              : ActionKind::kForward;
    state(as_kind(backward, holder));
  }

  void add_pair(const Action& pair) {
    const Action own_forward = overlapped_forward(pair);
    add_all(own_forward);
    Dependencies of_backward;
    Collector(schedule_, forms_, of_backward).add_all(overlapped_backward(pair));
    for (const Dependency& need : of_backward) {
      if (need.producer != own_forward) result_.add(need);
    }
  }

  void message(const Action& producer) { result_.add({producer, true}); }
  void state(const Action& producer) { result_.add({producer, false}); }

  const Schedule& schedule_;
  const BackwardForms& forms_;
  Dependencies& result_;
};

}  // namespace

Dependencies dependencies(const Action& action, const Schedule& schedule,
                          const BackwardForms& forms) {
  Dependencies result;
  Collector(schedule, forms, result).add_all(action);
  return result;
}

}  // namespace pipert

#include "analysis/backward_forms.h"

#include <algorithm>

#include "base/index.h"

namespace pipert {

BackwardForms::BackwardForms(const Schedule& schedule)
    : num_stages_(schedule.num_stages()),
      num_microbatches_(schedule.num_microbatches),
      num_slices_(schedule.num_slices) {
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      note(action.kind == ActionKind::kOverlap ? overlapped_backward(action) : action);
    }
  }
}

void BackwardForms::note(const Action& action) {
  std::uint8_t form = 0;
  switch (action.kind) {
    case ActionKind::kBackward:
      has_backward_ = true;
      return;
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
      has_backward_ = true;
      form = kSplit;
      break;
    case ActionKind::kRecompute:
      form = kRecomputed;
      break;
    case ActionKind::kOffload:
    case ActionKind::kReload:
      form = kOffloaded;
      break;
    case ActionKind::kForward:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
    case ActionKind::kOverlap:
      return;
  }
  if (forms_.empty()) {
    forms_.resize(as_index(num_stages_) * as_index(num_microbatches_) * as_index(num_slices_), 0);
  }
  forms_[cell(action)] |= form;
}

std::size_t BackwardForms::cell(const Action& action) const {
  const std::size_t row =
      as_index(action.stage) * as_index(num_microbatches_) + as_index(action.microbatch);
  return row * as_index(num_slices_) + as_index(std::max<int>(action.slice, 0));
}

ActivationChange BackwardForms::change(const Action& action) const {
  switch (action.kind) {
    case ActionKind::kForward:
      return {.at_start = 1, .at_end = !has_backward_ || is_recomputed(action) ? -1 : 0};
    case ActionKind::kRecompute:
    case ActionKind::kReload:
      // What comes back to be computed again is the stage's input alone.
      return {.at_start = action.kind == ActionKind::kReload && is_recomputed(action) ? 0 : 1};
    case ActionKind::kOffload:
      return {.at_end = is_recomputed(action) ? 0 : -1};
    case ActionKind::kBackward:
    case ActionKind::kWeightGrad:
      return {.at_end = -1};
    case ActionKind::kInputGrad:
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
    case ActionKind::kOverlap:
      return {};
  }
  return {};
}

}  // namespace pipert

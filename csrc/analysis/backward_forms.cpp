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
    case ActionKind::kInputGrad:
    case ActionKind::kWeightGrad:
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
    case ActionKind::kBackward:
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

}  // namespace pipert

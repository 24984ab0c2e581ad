#include "analysis/activations.h"

#include <algorithm>

namespace pipert {
namespace {

// An activation is named after its forward, whatever the version.
Action name_of(const Action& action) {
  Action name = as_kind(action, ActionKind::kForward);
  name.version = 0;
  return name;
}

}  // namespace

void Activations::expect(const Action& action) {
  if (is_compute(action.kind) && action.kind != ActionKind::kForward) has_backward_ = true;
  if (action.kind != ActionKind::kRecompute) return;
  recomputed_.push_back(name_of(action));
  is_sorted_ = false;
}

double Activations::run(const Action& action, const ActivationSize& size) {
  double begun = 0.0;
  double ended = 0.0;
  switch (action.kind) {
    case ActionKind::kForward:
      begun = size.whole;
      if (!has_backward_) ended = size.whole;
      if (is_recomputed(action)) ended = size.whole - size.input;
      break;
    case ActionKind::kRecompute:
      begun = size.whole - size.input;
      break;
    case ActionKind::kReload:
      begun = is_recomputed(action) ? size.input : size.whole;
      break;
    case ActionKind::kOffload:
      ended = is_recomputed(action) ? size.input : size.whole;
      break;
    case ActionKind::kBackward:
      ended = size.whole;
      break;
    case ActionKind::kInputGrad:
      ended = size.whole - size.after_input_half;
      break;
    case ActionKind::kWeightGrad:
      ended = size.after_input_half;
      break;
    case ActionKind::kSendForward:
    case ActionKind::kRecvForward:
    case ActionKind::kSendBackward:
    case ActionKind::kRecvBackward:
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGrad:
    case ActionKind::kUpdate:
    case ActionKind::kOverlap:
      break;
  }
  const double during = alive_ + begun;
  alive_ = during - ended;
  return during;
}

bool Activations::is_recomputed(const Action& action) {
  if (recomputed_.empty()) return false;
  if (!is_sorted_) std::sort(recomputed_.begin(), recomputed_.end());
  is_sorted_ = true;
  return std::binary_search(recomputed_.begin(), recomputed_.end(), name_of(action));
}

}  // namespace pipert

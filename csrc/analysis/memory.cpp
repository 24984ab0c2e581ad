#include "analysis/memory.h"

#include <algorithm>
#include <cmath>

#include "base/one_or_each.h"

namespace pipert {
namespace {

// Of one microbatch (or slice) on one stage.
struct Size {
  double whole = 1.0;
  double after_input_half = 1.0;  // what stays from I to W
  double input = 0.0;             // of the stage
};

const Action& action_of(const Action& action) { return action; }
const Action& action_of(const Span& span) { return span.action; }

// The activations of one rank while it does its actions.
class Activations {
 public:
  template <typename Actions>
  explicit Activations(const Actions& actions) {
    for (const auto& each : actions) {
      const Action& action = action_of(each);
      if (is_compute(action.kind) && action.kind != ActionKind::kForward) has_backward_ = true;
      if (action.kind == ActionKind::kRecompute) recomputed_.push_back(name_of(action));
    }
    std::sort(recomputed_.begin(), recomputed_.end());
  }

  void run(const Action& action, const Size& size) {
    switch (action.kind) {
      case ActionKind::kForward:
        begin(size.whole);
        if (!has_backward_) alive_ -= size.whole;
        if (is_recomputed(action)) alive_ -= size.whole - size.input;
        break;
      case ActionKind::kRecompute:
        begin(size.whole - size.input);
        break;
      case ActionKind::kReload:
        begin(is_recomputed(action) ? size.input : size.whole);
        break;
      case ActionKind::kOffload:
        alive_ -= is_recomputed(action) ? size.input : size.whole;
        break;
      case ActionKind::kBackward:
        alive_ -= size.whole;
        break;
      case ActionKind::kInputGrad:
        alive_ -= size.whole - size.after_input_half;
        break;
      case ActionKind::kWeightGrad:
        alive_ -= size.after_input_half;
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
  }

  double peak() const { return peak_; }

 private:
  // The activation that an action is about.
  static Action name_of(const Action& action) {
    Action name = forward(action.stage, action.microbatch);
    name.slice = action.slice;
    return name;
  }

  bool is_recomputed(const Action& action) const {
    if (recomputed_.empty()) return false;
    return std::binary_search(recomputed_.begin(), recomputed_.end(), name_of(action));
  }

  void begin(double size) {
    alive_ += size;
    peak_ = std::max(peak_, alive_);
  }

  bool has_backward_ = false;
  std::vector<Action> recomputed_;  // by name, ascending
  double alive_ = 0.0;
  double peak_ = 0.0;
};

template <typename Actions, typename SizeOf>
double peak_of(const Actions& actions, SizeOf size_of) {
  Activations activations(actions);
  for (const auto& each : actions) {
    activations.run(action_of(each), size_of(action_of(each).stage));
  }
  return activations.peak();
}

template <typename Actions>
int peak_count(const Actions& actions) {
  return static_cast<int>(std::lround(peak_of(actions, [](StageIndex) { return Size{}; })));
}

}  // namespace

int peak_activations(const std::vector<Action>& actions) { return peak_count(actions); }
int peak_activations(const std::vector<Span>& spans) { return peak_count(spans); }

std::vector<double> peak_bytes(const Schedule& schedule, const Costs& costs) {
  std::vector<double> peaks;
  if (costs.activation_bytes.empty()) return peaks;
  const auto size_of = [&](StageIndex stage) {
    const double whole = one_of(costs.activation_bytes, stage) / schedule.num_slices;
    const bool is_first = schedule.placement.is_first(stage);
    return Size{.whole = whole,
                .after_input_half = whole * one_of(costs.weight_share, stage),
                .input = is_first ? 0.0 : one_of(costs.bytes, stage - 1) / schedule.num_slices};
  };
  for (const auto& actions : schedule.ranks) peaks.push_back(peak_of(actions, size_of));
  return peaks;
}

}  // namespace pipert

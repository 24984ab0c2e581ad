// Activations: those of one rank while it does its actions. The one place that knows how long they
// live; verify() counts them against a limit, a timeline takes their peak.
//
// An activation is there from the start of its F to the end of its B, or of its W if B is split;
// without any backward only while its F runs. If it is computed again, from the start of its R on:
// between F and R there is only the stage's input. From the end of its OFFLOAD to the start of its
// RELOAD there is nothing.
#pragma once

#include <vector>

#include "ir/action.h"

namespace pipert {

// Of one microbatch (or slice) on one stage, in any one unit.
struct ActivationSize {
  double whole = 1.0;
  double after_input_half = 1.0;  // what stays from I to W
  double input = 0.0;             // of the stage
};

class Activations {
 public:
  // All actions of the rank are told before the first is run, in any order. REQUIRES actions that
  // are no pairs.
  void expect(const Action& action);

  // Returns what is alive while the action runs.
  double run(const Action& action, const ActivationSize& size);

  // After the last action that was run.
  double alive() const { return alive_; }

 private:
  bool is_recomputed(const Action& action);

  bool has_backward_ = false;
  bool is_sorted_ = true;
  std::vector<Action> recomputed_;  // the forwards of those that are computed again
  double alive_ = 0.0;
};

}  // namespace pipert

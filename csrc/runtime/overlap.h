// Overlap: how the halves of an overlapped pair run, where somebody wants them to run together.
//
// Owned by a rank and called by its thread. The halves may be run on other threads, at once.
#pragma once

#include <functional>

#include "ir/action.h"

namespace pipert {

// One half of a pair: a forward or a backward whose input is there.
struct OverlapHalf {
  Action action;
  std::function<void()> run;  // once; throws what the stage throws
};

struct OverlapHalves {
  OverlapHalf forward;
  OverlapHalf backward;
};

class Overlap {
 public:
  virtual ~Overlap() = default;
  // Runs each half once and returns when both are done. Throws what a half throws, or why they were
  // not run once each.
  virtual void run(const OverlapHalves& halves) = 0;
};

}  // namespace pipert

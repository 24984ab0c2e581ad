// RecursionGuard: counts how deep a walk through nested values is. A value that contains itself
// would otherwise run out of stack. The limit is that of a Structure on its way between processes.
#pragma once

#include "base/error.h"

namespace pipert {

class RecursionGuard {
 public:
  RecursionGuard() {
    if (depth_ >= kMaxDepth) {
      throw ValueError(concat("a value is nested deeper than ", kMaxDepth, ", or contains itself"));
    }
    ++depth_;
  }
  ~RecursionGuard() { --depth_; }
  RecursionGuard(const RecursionGuard&) = delete;
  RecursionGuard& operator=(const RecursionGuard&) = delete;

 private:
  static constexpr int kMaxDepth = 100;
  static inline thread_local int depth_ = 0;
};

}  // namespace pipert

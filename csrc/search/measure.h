// Measure: what neighbouring layers take together as a stage: time, or memory.
//
// A layer takes `once`, whatever stage it is in (its work, its parameters), and `each` as often as
// its stage says in `times` (its activations, for each microbatch that the stage holds).
#pragma once

#include <vector>

#include "ir/placement.h"

namespace pipert {

class Measure {
 public:
  // `once` and `each`: shape (num_layers,). `times`: shape (num_stages,). Without these two all
  // stages are alike. Throws ValueError for other shapes, and for a number that isn't finite and at
  // least 0.
  explicit Measure(std::vector<double> once, const std::vector<double>& each = {},
                   std::vector<double> times = {});

  int num_layers() const { return static_cast<int>(once_before_.size()) - 1; }
  // 0: of as many as you like, all alike.
  int num_stages() const { return static_cast<int>(times_.size()); }

  // Of layers [begin, end) as that stage: never less for more layers. O(1).
  double of(StageIndex stage, int begin, int end) const;
  // Of layers [begin, end) as the stage for which it is least. O(1).
  double least(int begin, int end) const { return sum(begin, end, least_times_); }

 private:
  double sum(int begin, int end, double times) const;

  std::vector<double> once_before_;  // of the first i layers, shape (num_layers + 1,)
  std::vector<double> each_before_;  // likewise, or empty
  std::vector<double> times_;        // shape (num_stages,), or empty
  double least_times_ = 0.0;
};

}  // namespace pipert

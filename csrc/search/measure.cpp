#include "search/measure.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

std::vector<double> sums_before(const std::vector<double>& values) {
  std::vector<double> before(values.size() + 1, 0.0);
  std::partial_sum(values.begin(), values.end(), before.begin() + 1);
  return before;
}

}  // namespace

Measure::Measure(std::vector<double> once, const std::vector<double>& each,
                 std::vector<double> times)
    : once_before_(sums_before(once)) {
  for (const double value : once) require_number("once", value);
  for (const double value : each) require_number("each", value);
  for (const double value : times) require_number("times", value);
  if (each.empty() != times.empty() || (!each.empty() && each.size() != once.size())) {
    throw ValueError(concat("expected each with ", once.size(), " entries (those of once) beside ",
                            "times, or neither; got ", each.size(), " and ", times.size()));
  }
  if (each.empty()) return;
  each_before_ = sums_before(each);
  times_ = std::move(times);
  least_times_ = *std::min_element(times_.begin(), times_.end());
}

double Measure::of(StageIndex stage, int begin, int end) const {
  return sum(begin, end, times_.empty() ? 0.0 : times_[as_index(stage)]);
}

double Measure::sum(int begin, int end, double times) const {
  const double once = once_before_[as_index(end)] - once_before_[as_index(begin)];
  if (each_before_.empty()) return once;
  return once + times * (each_before_[as_index(end)] - each_before_[as_index(begin)]);
}

}  // namespace pipert

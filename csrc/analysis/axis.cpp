#include "analysis/axis.h"

#include <cmath>

#include "base/error.h"

namespace pipert {

double tick_step(double makespan, double most) {
  const double least = makespan / most;
  if (!std::isnormal(least) || least < 0.0) return 0.0;
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least) return factor * power;
  }
  return 10.0 * power;
}

std::string tick_label(double time) { return concat(time); }

}  // namespace pipert

// axis: where a time axis has its ticks, and what they are called.
#pragma once

#include <string>

namespace pipert {

// 1, 2 or 5 times a power of ten, so that at most `most` steps fit into `makespan`; 0 (no ticks)
// for a makespan that is 0 or too small to be divided. REQUIRES most > 0.
double tick_step(double makespan, double most);

// "0", "0.5", "1200".
std::string tick_label(double time);

}  // namespace pipert

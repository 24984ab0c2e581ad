// StageTimes: what the actions of each stage take, and how long their messages are on the way. A
// plain value.
#pragma once

#include <vector>

namespace pipert {

// In any one unit. Each vector has shape (num_stages,).
struct StageTimes {
  std::vector<double> forward;
  std::vector<double> input;
  std::vector<double> weight;
  std::vector<double> activation;  // from the end of F(s-1, m) until F(s, m) can read it
  std::vector<double> gradient;    // from the end of I(s+1, m) until I(s, m) can read it
};

}  // namespace pipert

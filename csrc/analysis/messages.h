// messages: what went from rank to rank in a timeline, as far as its spans tell.
#pragma once

#include <vector>

#include "analysis/timeline.h"

namespace pipert {

struct MessageSpan {
  bool is_gradient = false;  // or an activation
  Rank source = 0;
  double sent = 0.0;  // the end of the action that made it
  Rank destination = 0;
  double read = 0.0;  // the start of the action that reads it
};

// In the order of the actions that read them: by rank, then by position. O(n log n).
std::vector<MessageSpan> messages_of(const Timeline& timeline);

}  // namespace pipert

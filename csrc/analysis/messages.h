// messages: what went from rank to rank in a timeline.
#pragma once

#include <vector>

#include "analysis/timeline.h"

namespace pipert {

// Those that the timeline keeps; else what its spans tell: a message was sent at the end of the
// action that made it, and arrived no later than the start of the one that reads it, which then
// stands for its arrival. By reader's rank, then by position. O(n log n).
std::vector<MessageSpan> messages_of(const Timeline& timeline);

// Whether it carries a gradient, or else an activation.
bool is_gradient(const MessageSpan& message, const Timeline& timeline);

}  // namespace pipert

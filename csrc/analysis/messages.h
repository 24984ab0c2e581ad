// messages: what went from rank to rank in a timeline.
#pragma once

#include <vector>

#include "analysis/timeline.h"

namespace pipert {

// The spans between which a message went: the one that made it, and the one that reads it.
struct SpanPair {
  Place sender;
  Place reader;
};

// What a timeline's spans tell of messages: each was sent at the end of the action that made it,
// and arrived no later than the start of the one that reads it, which then stands for its arrival.
// By reader's rank, then by position; of several that one action reads, that which was sent last
// comes first: it is the one that was waited for. Throws ValueError for ends that aren't spans of
// two ranks.
std::vector<MessageSpan> message_spans(const Timeline& timeline, const std::vector<SpanPair>& ends);

// Those that the timeline keeps; else what its spans tell of messages between neighbouring stages.
// By reader's rank, then by position. O(n log n).
std::vector<MessageSpan> messages_of(const Timeline& timeline);

// Whether it carries a gradient, or else an activation.
bool is_gradient(const MessageSpan& message, const Timeline& timeline);

}  // namespace pipert

// gaps: why a rank was idle, whenever it was.
#pragma once

#include <string>
#include <vector>

#include "analysis/timeline.h"

namespace pipert {

enum class GapReason : std::uint8_t {
  kProducer,  // `action` on rank `other` is not done yet (or its SEND has not come)
  kTransfer,  // the message of `action` from rank `other` is on the way
  kLink,      // the link of the message is busy with that of `action` from rank `other`
  kReader,    // blocking: rank `other` has not come to `action`, which takes the message
  kSending,   // blocking: the message for `action` on rank `other` is on the way
  kDone,      // nothing is left to do
  kUnknown,   // of a measured timeline: not for want of a message
};

struct Gap {
  Rank rank = 0;
  double start = 0.0;
  double end = 0.0;
  GapReason reason = GapReason::kDone;
  Rank other = -1;  // none with kDone and kUnknown, nor is there an action
  Action action;
};

// By rank, in order of time. With the rank's spans they fill the time from the timeline's first
// start to its last end without a hole or an overlap (if spans don't overlap), to the last bit.
// O(n log n + gaps): on a link that many share there is a gap for each message ahead. Throws
// ValueError for a timeline of which one rank has spans out of order.
std::vector<std::vector<Gap>> gaps_of(const Timeline& timeline);

// "producer", "transfer", ...
std::string_view gap_reason_name(GapReason reason);

// "waits for 2B1 on rank 1".
std::string to_string(const Gap& gap);

}  // namespace pipert

// The notation of the zero-bubble authors' Megatron fork
// (sail-sg/zero-bubble-pipeline-parallelism), read into a Schedule. Format: docs/schedules.md,
// "Zero-bubble notation".
//
// Note [Words of the zero-bubble notation]
//
// What we call a rank is a stage there, and our stages are chunks of it, numbered as they follow in
// the model. F, W and R (recompute) mean the same; B is our I, BW our B; SEND_FORWARD and the like
// are our transfers. POST_VALIDATION and its transfers belong to their optimizer and are left out.
// Their words for a parallel vocabulary have no counterpart and are refused.
//
// Their schedules are lists of nodes. What their programs print is shorter: "f0 F0 b0 w0", one line
// for each of their stages, the first chunk in small letters and the second in capital ones; and BW
// is printed as B there, so a B without a W of its own is a whole backward.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

// As much of their ScheduledNode as says what is done.
struct ZeroBubbleNode {
  std::string type;  // "F", "B", "W", "BW", "SEND_FORWARD", ...
  int chunk = 0;
  int microbatch = 0;
  int seq_split = 0;  // our slice
};

// `ranks`: the nodes of each of their stages. `placement`: where the chunks are; by default a V, as
// theirs are; it must be given if there are more than two chunks. Throws ValueError with row (the
// rank) and column (the node) from 1, and the reason.
Schedule from_zero_bubble(const std::vector<std::vector<ZeroBubbleNode>>& ranks,
                          const std::optional<Placement>& placement = std::nullopt,
                          std::string name = "zero-bubble");

// The same from what they print, with blanks between the words. Where all letters are of one case
// there is one chunk.
Schedule parse_zero_bubble(std::string_view text,
                           const std::optional<Placement>& placement = std::nullopt,
                           std::string name = "zero-bubble");

}  // namespace pipert

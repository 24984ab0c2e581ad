// with_offload: a schedule whose activations spend the time until they are needed on the host.
//
//     rank 0 of 4 under 1f1b, one action ahead
//     before: F0          F1          F2                   F3          B0         F4          B1
//     after:  F0 OFFLOAD0 F1 OFFLOAD1 F2 OFFLOAD2 RELOAD0  F3 OFFLOAD3 B0 RELOAD1 F4 OFFLOAD4 B1
//
// The most activations that a rank holds fall from as many as are in flight to ahead + 1 there.
#pragma once

#include <optional>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

struct OffloadOptions {
  std::optional<std::vector<StageIndex>> stages = std::nullopt;  // whose; nullopt: of all
  // So many compute actions before the one that needs them, activations begin to come back.
  int ahead = 1;
};

// An OFFLOAD right behind each F, a RELOAD before the R, B or I that reads its activations, where
// at least one compute action lies between the two. What is moved already stays as it is. Throws
// IndexError for a stage that isn't there, ValueError for a negative `ahead`. O(actions).
Schedule with_offload(const Schedule& schedule, const OffloadOptions& options);

}  // namespace pipert

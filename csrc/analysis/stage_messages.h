// StageMessages: the messages that each stage sends to other ranks, and how large they are: under a
// schedule's placement, as lowering makes them (Note [Deliveries] in plan/dataflow.h). Immutable.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "analysis/costs.h"
#include "base/index.h"
#include "ir/placement.h"

namespace pipert {

struct StageMessage {
  StageIndex reader = 0;  // the nearest on its rank: that which runs first
  Rank rank = 0;          // the reader's
  double bytes = 0.0;     // of a whole microbatch, of all that goes there
};

class StageMessages {
 public:
  // REQUIRES costs that fit a schedule of this placement.
  StageMessages(const Costs& costs, const Placement& placement);

  // One for each other rank that has readers, that to the nearest reader first.
  std::span<const StageMessage> sent(MessageKind kind, StageIndex stage) const {
    return by_kind_[static_cast<std::size_t>(kind)].of(stage);
  }

  // Of the message from a stage to a rank. REQUIRES that there is one.
  double bytes(MessageKind kind, StageIndex stage, Rank rank) const {
    const auto messages = sent(kind, stage);
    std::size_t at = 0;
    while (messages[at].rank != rank) ++at;
    return messages[at].bytes;
  }

 private:
  struct OfKind {
    std::vector<std::size_t> begins;  // by stage, and one more
    std::vector<StageMessage> messages;

    std::span<const StageMessage> of(StageIndex stage) const {
      const std::size_t at = as_index(stage);
      return std::span(messages).subspan(begins[at], begins[at + 1] - begins[at]);
    }
  };

  std::array<OfKind, 2> by_kind_;  // by MessageKind
};

}  // namespace pipert

// Indices and names of the things that every floor talks about. Plain values.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

namespace pipert {

using Rank = std::int32_t;           // position in the pipeline group, from 0
using StageIndex = std::int32_t;     // global, from 0
using Microbatch = std::int32_t;     // from 0
using Slice = std::int16_t;          // of a microbatch's sequence, from 0
using WeightVersion = std::int32_t;  // of a stage's weights: 0 before the first update

// A directed pair of ranks that exchange data.
struct Edge {
  Rank source = 0;
  Rank destination = 0;
  friend auto operator<=>(const Edge&, const Edge&) = default;
};

enum class MessageKind : std::uint8_t {
  kActivation,  // what F(stage, microbatch) returned
  kGradient,    // the input gradient that B or I of (stage, microbatch) computed
};

// A message is named after the action that made it.
struct MessageKey {
  MessageKind kind = MessageKind::kActivation;
  StageIndex stage = 0;
  Microbatch microbatch = 0;
  friend auto operator<=>(const MessageKey&, const MessageKey&) = default;
};

// The stage that the chain hands it to: the next one for an activation, the one before for a
// gradient. Skip edges have more readers.
inline StageIndex neighbour_of(const MessageKey& message) {
  return message.stage + (message.kind == MessageKind::kActivation ? 1 : -1);
}
// "activation of stage 1, microbatch 3"
std::string to_string(const MessageKey& message);
// "0->1"
std::string to_string(const Edge& edge);

}  // namespace pipert

// StreamKey: which stream of random numbers a draw belongs to. A plain value.
//
// Draws of one stream come one after the other; streams have nothing to do with each other. So what
// a layer draws for a microbatch doesn't depend on what other layers drew, or when.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace pipert {

enum class StreamKind : std::uint8_t { kTraining, kEvaluation, kBackward };

struct StreamKey {
  // The layer of what isn't the model's: the loss function.
  static constexpr std::int64_t kLossLayer = -1;

  StreamKind kind = StreamKind::kTraining;
  std::int64_t step = 0;   // training steps before this one
  std::int64_t layer = 0;  // through the whole model
  Microbatch microbatch = 0;
};

// One step of splitmix64 from state `x` (Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014): a bijection of 64 bits in which each bit of x changes half the bits.
std::uint64_t mix(std::uint64_t x);

// The seed of a stream: mix(mix(mix(mix(mix(seed) ^ kind) ^ step) ^ layer) ^ microbatch). Two keys
// that differ in one number alone never have the same one.
std::uint64_t stream_seed(std::uint64_t seed, const StreamKey& key);

}  // namespace pipert

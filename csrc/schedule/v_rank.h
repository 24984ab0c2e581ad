// VRank: the actions of one rank of a V, written as papers write them: how often which actions of
// chunk 0 (stage r) and chunk 1 (stage 2p-1-r). Each kind takes the microbatches in order.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "ir/schedule.h"

namespace pipert {

// A kind of action and a chunk.
enum class VAction : std::uint8_t {
  kF0,
  kF1,
  kB0,
  kB1,
  kI0,
  kI1,
  kW0,  // of the chunk's oldest I; only where the chunk has no B
  kW1,
  kW,     // of the rank's oldest I; not along with W0 and W1
  kF0B1,  // the two as an overlapped pair
  kF1B0,
};

class VRank {
 public:
  // An action whose microbatch is not there is counted and left out.
  VRank(Rank rank, int num_ranks, int num_microbatches);

  // All of `actions`, `times` times over.
  void repeat(int times, std::initializer_list<VAction> actions);

  std::vector<Action> take() && { return std::move(actions_); }

 private:
  void add(VAction action);
  void push(const Action& action);
  Action next_forward(int chunk);
  Action next_backward(int chunk);
  Action next_input(int chunk);

  int num_microbatches_;
  std::array<StageIndex, 2> stages_;          // by chunk
  std::array<Microbatch, 2> forwards_ = {};   // by chunk: how many there are so far
  std::array<Microbatch, 2> backwards_ = {};  // B or I
  std::array<Microbatch, 2> weights_ = {};    // W0 or W1
  std::vector<Action> inputs_;                // all I
  std::size_t num_weights_ = 0;               // W
  std::vector<Action> actions_;
};

}  // namespace pipert

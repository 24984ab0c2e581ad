// turns: the order in which an interleaved schedule takes the chunks and microbatches of a rank:
// groups of microbatches, each of which passes through chunk 0, then through chunk 1, ...
#pragma once

#include <string_view>
#include <vector>

#include "schedule/registry.h"

namespace pipert {

// One turn of a rank: a chunk, counted from 0 on each rank, and a microbatch.
struct Turn {
  int chunk = 0;
  Microbatch microbatch = 0;
};

// The option that gives the size of a group.
inline constexpr std::string_view kGroupSize = "group_size";

// The option's value, by default num_ranks. Throws ValueError for fewer microbatches than ranks, a
// group of fewer microbatches than ranks or of more than there are, and for a last group of fewer
// microbatches than ranks, which would leave the ranks waiting for each other.
int group_size_of(const ScheduleRequest& request);

// The turns of the forwards, the same on every rank; the backwards take the same turns with the
// chunks reversed.
std::vector<Turn> interleaved_turns(int num_chunks, int num_microbatches, int group_size);

}  // namespace pipert

// A fake of csrc/cuda/cuda_api.h, linked in its place: streams are threads that run what they were
// given late and in any order relative to each other; copies read their source when they run. So a
// wait that is missing is a wrong result, sooner or later.
//
// "Device memory" is shared memory of this process's, which others can import; it is poisoned when
// it is allocated and when it is freed. Who closes an import waits for all streams of the process,
// as with CUDA. Streams don't survive a fork: make them in the child.
#pragma once

#include <cstddef>

namespace pipert::cuda_fake {

constexpr unsigned char kPoison = 0xDB;

// Of the streams that are made from now on: what their delays are drawn from, and how long an
// operation is delayed at most.
void set_delays(unsigned seed, int max_delay_us);

// How many waits were for an event that nobody had recorded.
int num_lost_waits();
// How many waits for a word were given to streams.
int num_word_waits();

// Of this process, now.
int num_allocations();
int num_imports();

}  // namespace pipert::cuda_fake

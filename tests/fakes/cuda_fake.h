// A fake of csrc/cuda/cuda_api.h, linked in its place: streams are threads that run what they were
// given late and in any order relative to each other; copies read their source when they run. So a
// wait that is missing is a wrong result, sooner or later.
//
// "Device memory" is shared memory of this process's, which others can import; it is poisoned when
// it is allocated and when it is freed. Who closes an import waits for all streams of the process,
// as with CUDA. Streams don't survive a fork: make them in the child.
#pragma once

#include <cstddef>
#include <functional>

#include "cuda/cuda_api.h"

namespace pipert::cuda_fake {

constexpr unsigned char kPoison = 0xDB;
constexpr int kNumDevices = 2;

// From now on: what the delays of the streams that are made are drawn from, and how long an
// operation of any stream is delayed at most.
void set_delays(unsigned seed, int max_delay_us);

// The calling thread's.
int current_device();
void set_current_device(int device);

// Runs on the stream, as late as anything else there.
void launch(cuda::Stream stream, std::function<void()> kernel);

// How many waits were for an event that nobody had recorded.
int num_lost_waits();
// How many waits for a word were given to streams.
int num_word_waits();

// Of this process, now.
int num_allocations();
int num_imports();

// A planted error: null is none. The streams that these are asked of come resolved.
struct Plant {
  // Whether a wait of a stream for what was recorded on another one is left out.
  std::function<bool(cuda::Stream waiter, cuda::Stream recorded_on)> leaves_out_wait;
  // By how many of the stream's operations an event that is recorded there is too early.
  std::function<int(cuda::Stream)> records_early;
  // Whether the allocator isn't told that the stream uses memory (caching_allocator_fake.h).
  std::function<bool(cuda::Stream)> leaves_out_adoption;
};
// REQUIRES that nobody is inside a call.
void plant(Plant plant);
// How often it struck, since it was planted.
int num_planted();
// For the allocator. Counts.
bool leaves_out_adoption(cuda::Stream stream);

// As it was created; the default streams have the lowest one.
cuda::StreamPriority priority_of(cuda::Stream stream);
int device_of(cuda::Stream stream);
// Itself; for null, the device's default stream.
cuda::Stream resolve(cuda::Stream stream, int device);

}  // namespace pipert::cuda_fake

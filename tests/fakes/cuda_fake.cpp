#include "cuda_fake.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/cuda_api.h"
#include "stream_fake.h"

namespace pipert {
namespace {

struct State {
  std::atomic<unsigned> seed{1};
  std::atomic<int> num_lost_waits{0};
  std::mutex streams_mutex;
  std::set<CUstream_st*> streams;
  pid_t streams_of = 0;  // the process that made them: a fork has none
  cuda_fake::Plant plant;
  std::atomic<int> num_planted{0};
};

// Never destroyed: lanes may call to the end.
State& state() {
  static auto* const all = new State;
  return *all;
}

thread_local int device_of_thread = 0;

bool strikes(bool is_planted) {
  if (is_planted) ++state().num_planted;
  return is_planted;
}

}  // namespace
}  // namespace pipert

namespace pipert::cuda_fake {

void set_delays(unsigned seed, int max_us) {
  state().seed = seed;
  max_delay_us = max_us;
}

int current_device() { return device_of_thread; }

void set_current_device(int device) {
  if (device < 0 || device >= kNumDevices)
    throw CudaError("cudaSetDevice failed: invalid device ordinal");
  device_of_thread = device;
}

int num_lost_waits() { return state().num_lost_waits; }

void plant(Plant plant) {
  state().plant = std::move(plant);
  state().num_planted = 0;
}

int num_planted() { return state().num_planted; }

bool leaves_out_adoption(cuda::Stream stream) {
  const auto& leaves_out = state().plant.leaves_out_adoption;
  return strikes(leaves_out && leaves_out(stream));
}

cuda::StreamPriority priority_of(cuda::Stream stream) { return stream->priority; }
int device_of(cuda::Stream stream) { return stream->device; }

cuda::Stream resolve(cuda::Stream stream, int device) {
  static const auto* const default_streams = [] {
    auto* streams = new std::vector<cuda::Stream>;
    for (int i = 0; i < kNumDevices; ++i)
      streams->push_back(
          new CUstream_st(state().seed.fetch_add(1), i, cuda::StreamPriority::kLowest));
    return streams;
  }();
  return stream != nullptr ? stream : (*default_streams)[static_cast<std::size_t>(device)];
}

void launch(cuda::Stream stream, std::function<void()> kernel) {
  resolve(stream, device_of_thread)->give(std::move(kernel));
}

}  // namespace pipert::cuda_fake

namespace pipert::cuda {

using cuda_fake::Point;

namespace {

Stream resolve(Stream stream) { return cuda_fake::resolve(stream, device_of_thread); }

// The streams of this process, to be looked at under their lock.
std::set<Stream>& own_streams() {
  if (state().streams_of != getpid()) state().streams.clear();
  state().streams_of = getpid();
  return state().streams;
}

}  // namespace

Stream create_stream(StreamPriority priority) {
  auto* stream = new CUstream_st(state().seed.fetch_add(1), device_of_thread, priority);
  const std::lock_guard lock(state().streams_mutex);
  own_streams().insert(stream);
  return stream;
}

void destroy_stream(Stream stream) {
  {
    const std::lock_guard lock(state().streams_mutex);
    own_streams().erase(stream);
  }
  delete stream;
}

void synchronize(Stream stream) { resolve(stream)->synchronize(); }
bool is_idle(Stream stream) { return resolve(stream)->is_idle(); }
bool is_captured(Stream /*stream*/) { return false; }

Event create_event() { return new CUevent_st{device_of_thread, false, {}, nullptr}; }
Event create_timing_event() { return new CUevent_st{device_of_thread, true, {}, nullptr}; }
void destroy_event(Event event) { delete event; }

void record(Event event, Stream stream) {
  stream = resolve(stream);
  if (event->device != stream->device)
    throw CudaError("cudaEventRecord failed: the event and the stream are of different devices");
  auto point = std::make_shared<Point>(stream);
  {
    const std::lock_guard lock(event->mutex);
    event->last = point;
  }
  const auto& records_early = state().plant.records_early;
  const int num_early = records_early ? records_early(stream) : 0;
  strikes(num_early > 0);
  stream->give([point] { point->pass(); }, num_early);
}

void wait(Stream stream, Event event) {
  stream = resolve(stream);
  const auto point = event->get_last();
  if (point == nullptr) {
    ++state().num_lost_waits;
    return;  // as CUDA does
  }
  const auto& leaves_out = state().plant.leaves_out_wait;
  if (strikes(leaves_out && leaves_out(stream, point->stream))) return;
  stream->give([point] { point->wait(); });
}

bool is_done(Event event) {
  const auto point = event->get_last();
  return point == nullptr || point->is_passed.load() != 0;
}

void synchronize(Event event) {
  if (const auto point = event->get_last()) point->wait();
}

float milliseconds_between(Event first, Event second) {
  const auto from = first->get_last();
  const auto to = second->get_last();
  if (!first->takes_time || !second->takes_time || from == nullptr || to == nullptr)
    throw CudaError("cudaEventElapsedTime failed: an event has no time");
  if (from->is_passed.load() == 0 || to->is_passed.load() == 0)
    throw CudaError("cudaEventElapsedTime failed: device not ready");
  return std::chrono::duration<float, std::milli>(to->passed_at - from->passed_at).count();
}

}  // namespace pipert::cuda

namespace pipert::cuda_fake {

void wait_for_all_streams() {
  const auto are_idle = [] {
    const std::lock_guard lock(state().streams_mutex);
    return std::ranges::all_of(cuda::own_streams(),
                               [](cuda::Stream stream) { return stream->is_idle(); });
  };
  while (!are_idle()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

}  // namespace pipert::cuda_fake

#include "cuda_fake.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cuda/cuda_api.h"

namespace pipert {
namespace {

struct Mapping {
  int file = -1;  // -1: imported
  std::size_t num_bytes = 0;
};

struct State {
  std::mutex mutex;
  std::map<void*, Mapping> mappings;
  std::atomic<unsigned> seed{1};
  std::atomic<int> max_delay_us{50};
  std::atomic<int> num_lost_waits{0};
  cuda_fake::Plant plant;
  std::atomic<int> num_planted{0};
};

// Never destroyed: streams may run to the end.
State& state() {
  static auto* const all = new State;
  return *all;
}

thread_local int device_of_thread = 0;

bool strikes(bool is_planted) {
  if (is_planted) ++state().num_planted;
  return is_planted;
}

void* map(int file, std::size_t num_bytes) {
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) throw CudaError("the fake can't map memory");
  return memory;
}

// In a handle's bytes.
struct Exported {
  pid_t pid;
  int file;
  std::size_t num_bytes;
};

// What an event stands for, once it was recorded.
struct Point {
  std::atomic<std::uint32_t> is_passed{0};
  std::chrono::steady_clock::time_point passed_at;  // before that is set
  cuda::Stream stream;                              // on which it is

  explicit Point(cuda::Stream stream) : stream(stream) {}
  void pass() {
    passed_at = std::chrono::steady_clock::now();
    is_passed.store(1);
    is_passed.notify_all();
  }
  void wait() const { is_passed.wait(0); }
};

}  // namespace
}  // namespace pipert

struct CUstream_st {
  CUstream_st(unsigned seed, int device, pipert::cuda::StreamPriority priority)
      : device(device), priority(priority), random(seed), thread([this] { run(); }) {}

  ~CUstream_st() {
    give([this] { closed = true; });
    thread.join();
  }

  void give(std::function<void()> operation) {
    const std::lock_guard lock(mutex);
    operations.push_back(std::move(operation));
    changed.notify_all();
  }

  // Before the last operation, unless that runs already.
  void give_early(std::function<void()> operation) {
    const std::lock_guard lock(mutex);
    if (operations.size() < 2) return operation();
    operations.insert(operations.end() - 1, std::move(operation));
  }

  bool is_idle() {
    const std::lock_guard lock(mutex);
    return operations.empty();
  }

  void synchronize() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return operations.empty(); });
  }

  void run() {
    std::unique_lock lock(mutex);
    while (!closed) {
      changed.wait(lock, [this] { return !operations.empty(); });
      const std::function<void()> operation = std::move(operations.front());
      lock.unlock();
      delay();
      operation();
      lock.lock();
      operations.pop_front();
      changed.notify_all();
    }
  }

  void delay() {
    const int max_delay_us = pipert::state().max_delay_us;
    if (max_delay_us == 0 || random() % 3 != 0) return;
    const auto us = random() % static_cast<unsigned>(max_delay_us);
    std::this_thread::sleep_for(std::chrono::microseconds(us));
  }

  const int device;
  const pipert::cuda::StreamPriority priority;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> operations;  // the first one runs
  bool closed = false;
  std::mt19937 random;
  std::thread thread;  // the last member: it uses the others
};

struct CUevent_st {
  const int device;
  const bool takes_time;
  std::mutex mutex;
  std::shared_ptr<pipert::Point> last;  // null: never recorded

  std::shared_ptr<pipert::Point> get_last() {
    const std::lock_guard lock(mutex);
    return last;
  }
};

namespace pipert::cuda_fake {

void set_delays(unsigned seed, int max_delay_us) {
  state().seed = seed;
  state().max_delay_us = max_delay_us;
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

namespace {

int count(bool is_imported) {
  const std::lock_guard lock(state().mutex);
  return static_cast<int>(
      std::count_if(state().mappings.begin(), state().mappings.end(),
                    [&](const auto& entry) { return (entry.second.file < 0) == is_imported; }));
}

}  // namespace

int num_allocations() { return count(false); }
int num_imports() { return count(true); }

}  // namespace pipert::cuda_fake

namespace pipert::cuda {
namespace {

// Until `is_reached`, without a core of its own.
template <typename IsReached>
void poll(const IsReached& is_reached) {
  for (int i = 0; !is_reached(); ++i) {
    if (i < 50) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  }
}

Stream resolve(Stream stream) { return cuda_fake::resolve(stream, device_of_thread); }

void copy(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  resolve(stream)->give([=] { std::memcpy(destination, source, num_bytes); });
}

Mapping forget(void* memory, bool is_imported, const char* call) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().mappings.find(memory);
  if (found == state().mappings.end() || (found->second.file < 0) != is_imported)
    throw CudaError(concat(call, " failed: no such memory"));
  const Mapping mapping = found->second;
  state().mappings.erase(found);
  return mapping;
}

}  // namespace

void* allocate(std::size_t num_bytes) {
  const int file = memfd_create("cuda_fake", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(num_bytes)) != 0)
    throw CudaError("cudaMalloc failed: out of memory");
  void* memory = map(file, num_bytes);
  std::memset(memory, cuda_fake::kPoison, num_bytes);
  const std::lock_guard lock(state().mutex);
  state().mappings[memory] = {file, num_bytes};
  return memory;
}

void deallocate(void* memory) {
  const Mapping mapping = forget(memory, false, "cudaFree");
  std::memset(memory, cuda_fake::kPoison, mapping.num_bytes);  // importers see it
  munmap(memory, mapping.num_bytes);
  close(mapping.file);
}

MemoryHandle export_memory(void* memory) {
  const std::lock_guard lock(state().mutex);
  const Mapping& mapping = state().mappings.at(memory);
  const Exported exported{getpid(), mapping.file, mapping.num_bytes};
  MemoryHandle handle;
  std::memcpy(handle.bytes.data(), &exported, sizeof(exported));
  return handle;
}

void* import_memory(const MemoryHandle& handle) {
  Exported exported;
  std::memcpy(&exported, handle.bytes.data(), sizeof(exported));
  const std::string path = concat("/proc/", exported.pid, "/fd/", exported.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) throw CudaError("cudaIpcOpenMemHandle failed: invalid handle");
  void* memory = map(file, exported.num_bytes);
  close(file);
  const std::lock_guard lock(state().mutex);
  state().mappings[memory] = {-1, exported.num_bytes};
  return memory;
}

void close_imported(void* memory) {
  const Mapping mapping = forget(memory, true, "cudaIpcCloseMemHandle");
  munmap(memory, mapping.num_bytes);
}

void* register_host(void* memory, std::size_t /*num_bytes*/) { return memory; }
void unregister_host(void* /*memory*/) {}

Stream create_stream(StreamPriority priority) {
  return new CUstream_st(state().seed.fetch_add(1), device_of_thread, priority);
}
void destroy_stream(Stream stream) { delete stream; }
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
  const auto pass = [point] { point->pass(); };
  if (strikes(records_early && records_early(stream))) return stream->give_early(pass);
  stream->give(pass);
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

void copy_on_device(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, stream);
}
void copy_to_device(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, stream);
}
void copy_to_host(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  copy(destination, source, num_bytes, stream);
}

void write_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  resolve(stream)->give([=] { std::atomic_ref(*word).store(value); });
}

void wait_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  resolve(stream)->give([=] {
    poll([&] { return static_cast<std::int32_t>(std::atomic_ref(*word).load() - value) >= 0; });
  });
}

}  // namespace pipert::cuda

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
#include <set>
#include <thread>

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
  std::atomic<int> num_word_waits{0};
  std::mutex streams_mutex;
  std::set<CUstream_st*> streams;
  pid_t streams_of = 0;  // the process that made them: a fork has none
};

State& state() {
  static State all;
  return all;
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

using Flag = std::shared_ptr<std::atomic<bool>>;

}  // namespace
}  // namespace pipert

struct CUstream_st {
  CUstream_st(unsigned seed, int max_delay_us)
      : random(seed), max_delay_us(max_delay_us), thread([this] { run(); }) {}

  ~CUstream_st() {
    give([this] { closed = true; });
    thread.join();
  }

  void give(std::function<void()> operation) {
    const std::lock_guard lock(mutex);
    operations.push_back(std::move(operation));
    changed.notify_all();
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
      const std::function<void()>& operation = operations.front();  // a deque's stay where they are
      lock.unlock();
      delay();
      operation();
      lock.lock();
      operations.pop_front();
      changed.notify_all();
    }
  }

  void delay() {
    if (max_delay_us == 0 || random() % 3 != 0) return;
    const auto us = random() % static_cast<unsigned>(max_delay_us);
    std::this_thread::sleep_for(std::chrono::microseconds(us));
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> operations;  // the first one runs
  bool closed = false;
  std::mt19937 random;
  int max_delay_us;
  std::thread thread;
};

struct CUevent_st {
  std::mutex mutex;
  pipert::Flag last;  // set when the stream has passed; null: never recorded
};

namespace pipert::cuda_fake {

void set_delays(unsigned seed, int max_delay_us) {
  state().seed = seed;
  state().max_delay_us = max_delay_us;
}

int num_lost_waits() { return state().num_lost_waits; }
int num_word_waits() { return state().num_word_waits; }

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

void copy(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  stream->give([=] { std::memcpy(destination, source, num_bytes); });
}

// The streams of this process, to be looked at under their lock.
std::set<Stream>& own_streams() {
  if (state().streams_of != getpid()) state().streams.clear();
  state().streams_of = getpid();
  return state().streams;
}

bool are_all_idle() {
  const std::lock_guard lock(state().streams_mutex);
  return std::ranges::all_of(own_streams(), [](Stream stream) { return stream->is_idle(); });
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
  poll(are_all_idle);
  const Mapping mapping = forget(memory, true, "cudaIpcCloseMemHandle");
  munmap(memory, mapping.num_bytes);
}

void* register_host(void* memory, std::size_t /*num_bytes*/) { return memory; }
void unregister_host(void* /*memory*/) {}

Stream create_stream() {
  auto* stream = new CUstream_st(state().seed.fetch_add(1), state().max_delay_us);
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

void synchronize(Stream stream) { stream->synchronize(); }
bool is_idle(Stream stream) { return stream->is_idle(); }

Event create_event() { return new CUevent_st; }
void destroy_event(Event event) { delete event; }

void record(Event event, Stream stream) {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  {
    const std::lock_guard lock(event->mutex);
    event->last = flag;
  }
  stream->give([flag] { flag->store(true); });
}

void wait(Stream stream, Event event) {
  const std::lock_guard lock(event->mutex);
  if (event->last == nullptr) {
    ++state().num_lost_waits;
    return;  // as CUDA does
  }
  stream->give([flag = event->last] { poll([&] { return flag->load(); }); });
}

bool is_done(Event event) {
  const std::lock_guard lock(event->mutex);
  return event->last == nullptr || event->last->load();
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
  stream->give([=] { std::atomic_ref(*word).store(value); });
}

void wait_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  ++state().num_word_waits;
  stream->give([=] {
    poll([&] { return static_cast<std::int32_t>(std::atomic_ref(*word).load() - value) >= 0; });
  });
}

}  // namespace pipert::cuda

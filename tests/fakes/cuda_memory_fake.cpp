// The part of the fake CUDA that is about memory: who has it, and what streams do to it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "base/error.h"
#include "cuda/cuda_api.h"
#include "cuda_fake.h"
#include "stream_fake.h"

namespace pipert {
namespace {

struct Mapping {
  int file = -1;  // -1: imported
  std::size_t num_bytes = 0;
};

struct Memory {
  std::mutex mutex;
  std::map<void*, Mapping> mappings;
  std::atomic<int> num_word_waits{0};
};

// Never destroyed: streams may run to the end.
Memory& all() {
  static auto* const memory = new Memory;
  return *memory;
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

}  // namespace
}  // namespace pipert

namespace pipert::cuda_fake {
namespace {

int count(bool is_imported) {
  const std::lock_guard lock(all().mutex);
  return static_cast<int>(
      std::count_if(all().mappings.begin(), all().mappings.end(),
                    [&](const auto& entry) { return (entry.second.file < 0) == is_imported; }));
}

}  // namespace

int num_allocations() { return count(false); }
int num_imports() { return count(true); }
int num_word_waits() { return all().num_word_waits; }

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

// The thread sanitizer shall not look: tests race here on purpose, and other processes order what
// it can't know of.
#ifdef __SANITIZE_THREAD__
__attribute__((no_sanitize_thread)) void move_bytes(void* to, const void* from, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i)
    static_cast<volatile char*>(to)[i] = static_cast<const volatile char*>(from)[i];
}
__attribute__((no_sanitize_thread)) void poison(void* memory, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i)
    static_cast<volatile unsigned char*>(memory)[i] = cuda_fake::kPoison;
}
#else
void move_bytes(void* to, const void* from, std::size_t size) { std::memcpy(to, from, size); }
void poison(void* memory, std::size_t size) { std::memset(memory, cuda_fake::kPoison, size); }
#endif

void copy(void* destination, const void* source, std::size_t num_bytes, Stream stream) {
  cuda_fake::launch(stream, [=] { move_bytes(destination, source, num_bytes); });
}

Mapping forget(void* memory, bool is_imported, const char* call) {
  const std::lock_guard lock(all().mutex);
  const auto found = all().mappings.find(memory);
  if (found == all().mappings.end() || (found->second.file < 0) != is_imported)
    throw CudaError(concat(call, " failed: no such memory"));
  const Mapping mapping = found->second;
  all().mappings.erase(found);
  return mapping;
}

}  // namespace

void* allocate(std::size_t num_bytes) {
  const int file = memfd_create("cuda_fake", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(num_bytes)) != 0)
    throw CudaError("cudaMalloc failed: out of memory");
  void* memory = map(file, num_bytes);
  poison(memory, num_bytes);
  const std::lock_guard lock(all().mutex);
  all().mappings[memory] = {file, num_bytes};
  return memory;
}

void deallocate(void* memory) {
  const Mapping mapping = forget(memory, false, "cudaFree");
  poison(memory, mapping.num_bytes);  // importers see it
  munmap(memory, mapping.num_bytes);
  close(mapping.file);
}

MemoryHandle export_memory(void* memory) {
  const std::lock_guard lock(all().mutex);
  const Mapping& mapping = all().mappings.at(memory);
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
  const std::lock_guard lock(all().mutex);
  all().mappings[memory] = {-1, exported.num_bytes};
  return memory;
}

void close_imported(void* memory) {
  cuda_fake::wait_for_all_streams();
  const Mapping mapping = forget(memory, true, "cudaIpcCloseMemHandle");
  munmap(memory, mapping.num_bytes);
}

void* register_host(void* memory, std::size_t /*num_bytes*/) { return memory; }
void unregister_host(void* /*memory*/) {}

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
  cuda_fake::launch(stream, [=] { std::atomic_ref(*word).store(value); });
}

void wait_value(Stream stream, std::uint32_t* word, std::uint32_t value) {
  ++all().num_word_waits;
  cuda_fake::launch(stream, [=] {
    poll([&] { return static_cast<std::int32_t>(std::atomic_ref(*word).load() - value) >= 0; });
  });
}

}  // namespace pipert::cuda

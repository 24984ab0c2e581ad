// The CUDA calls that pipert's lanes and its own channel need, as typed functions: no CUDA header
// is included.
//
// Implemented twice: over the CUDA runtime (csrc/cuda/real), linked where torch has CUDA, and by a
// fake in host memory (tests/fakes/cuda_fake.h), which runs streams late, for tests without a GPU.
// Any thread may call any of them; they act on the thread's current device. Each throws CudaError.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

struct CUstream_st;
struct CUevent_st;

namespace pipert {

// Names the call that failed and gives the driver's text. The error is cleared, unless it broke the
// context: then every later call fails likewise.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace cuda {

using Stream = CUstream_st*;
using Event = CUevent_st*;

// By which another process of the host opens memory; plain bytes.
struct MemoryHandle {
  std::array<char, 64> bytes{};
};

// Device memory of its own: no caching allocator's expandable segments, which can't be exported.
void* allocate(std::size_t num_bytes);
void deallocate(void* memory);
// REQUIRES what allocate() returned. Another process may import it until it is deallocated, and
// must have closed it by then. Who deallocates or closes waits for all of the device's streams.
MemoryHandle export_memory(void* memory);
void* import_memory(const MemoryHandle& handle);
void close_imported(void* memory);

// Makes host memory, whole pages, usable by streams. Returns its address for them.
void* register_host(void* memory, std::size_t num_bytes);
void unregister_host(void* memory);

enum class StreamPriority : std::uint8_t { kLowest, kHighest };

// Of the thread's current device, as events. No implicit order with the default stream, which is
// null here: that of the thread's current device. Who destroys one doesn't wait, and the handle
// stays good for who still has it: it may be given to the next who creates one.
Stream create_stream(StreamPriority priority = StreamPriority::kHighest);
void destroy_stream(Stream stream);
void synchronize(Stream stream);
bool is_idle(Stream stream);
// Whether what the stream is given goes into a graph; false where the driver can't tell.
bool is_captured(Stream stream);

// For order alone: no timing.
Event create_event();
// Takes the time, too: slower.
Event create_timing_event();
void destroy_event(Event event);
void record(Event event, Stream stream);
// What `stream` is given from now on comes after what was last recorded. REQUIRES that something
// was: the wait is silently lost otherwise.
void wait(Stream stream, Event event);
bool is_done(Event event);
// The host waits for what was last recorded.
void synchronize(Event event);
// REQUIRES that both take the time, and are done.
float milliseconds_between(Event first, Event second);

void copy_on_device(void* destination, const void* source, std::size_t num_bytes, Stream stream);
// Host memory must stay as it is until the stream has passed.
void copy_to_device(void* destination, const void* source, std::size_t num_bytes, Stream stream);
void copy_to_host(void* destination, const void* source, std::size_t num_bytes, Stream stream);

// After all that the stream was given before is visible to everybody, writes the word.
void write_value(Stream stream, std::uint32_t* word, std::uint32_t value);
// What the stream is given from now on comes after the word has reached `value`. Cyclic: reached
// means that (int32)(word - value) >= 0.
void wait_value(Stream stream, std::uint32_t* word, std::uint32_t value);

}  // namespace cuda
}  // namespace pipert

// PushBoard: what the two ends of one edge between GPU processes share in host memory: the words
// that their streams wait for, and which device memory the receiver has given the sender to push
// into.
//
// Note [Words in host memory]
//
// Each push has a number. A stream of the sender's writes it into its own word of `arrived` behind
// the data; the receiver's stream waits for that, copies the data out and writes the number into
// `freed`, which the sender's streams wait for before they push into the same slot again. Each word
// is written by one stream, in order, so few words serve all slots of an edge. Numbers wrap around:
// waits compare cyclically, and two numbers that are compared are never 2^30 apart.
//
// Hosts read the words too, which costs nothing: a stream isn't given a wait for what has come. The
// copy that the host gives instead comes after the word was seen, which was written behind the
// data. That rests on the writer: a stream writes a value behind a fence for the whole system, so
// that the data are in the receiver's memory before the word can be seen. (Waits don't ask for
// CU_STREAM_WAIT_VALUE_FLUSH, which is for words and data that a device may take in another order
// than they came: the words aren't in its memory.)
//
// A wait on a stream can be ended by writing its word alone. The words lie in host memory that both
// processes map and register, so whoever survives ends its own waits with a plain store: that works
// whatever state the driver, the streams and the other process are in.
//
// Note [Waits end]
//
// A stream only waits for what was given to a stream before, or is about to be: the sender
// publishes a message after it has given its stream the push and the word, and uses a slot again
// after the receiver has taken what was last sent from it (Sender::release). So no set of streams
// waits in a circle, even if some of them share a queue of the device, and a call that waits for
// all of a device's streams, as those that free or unmap its memory do, comes back.
//
// Note [Why words, and not events of two processes]
//
// The ring could tell the receiver's host that an event was recorded, which is all that a wait for
// another process's event needs. But nobody can end such a wait: an event has no address, and if
// the process that recorded it is gone, its streams won't ever come to it. A word ends by a store
// of whoever survives. (Between streams of one process, where nobody can be gone, events do it:
// they take a tenth of the time.)
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cuda/cuda_api.h"
#include "shm/process_id.h"
#include "shm/segment.h"

namespace pipert {

constexpr std::uint32_t kMaxGrants = 96;  // each doubles slots or bytes: more than there can be
constexpr std::uint32_t kEverything = 0xFFFFFFFF;
constexpr std::uint64_t kPushBoardMagic = 0x70697065'69706332;
constexpr std::uint32_t kMaxPushStreams = 4;

// Device memory of the receiver: `num_slots` times `slot_bytes`.
struct Grant {
  cuda::MemoryHandle handle;
  std::uint64_t slot_bytes = 0;
  std::uint32_t num_slots = 0;
};

struct PushEnd {
  std::atomic<std::uint32_t> is_open{0};  // 1 from when `process` is written
  std::atomic<std::uint32_t> is_closed{0};
  // 1: what it gave its streams, or was to give them, may never be done.
  std::atomic<std::uint32_t> has_left_undone{0};
  ProcessId process;
};

// That streams write and wait for. Each in a line of its own.
struct alignas(64) PushWord {
  std::atomic<std::uint32_t> number{0};
};

struct PushBoard {
  std::uint64_t magic = kPushBoardMagic;
  std::uint64_t num_bytes = sizeof(PushBoard);
  std::uint32_t first_number = 0;                 // before the first push's
  std::array<PushWord, kMaxPushStreams> arrived;  // by the sender's stream
  PushWord freed;
  alignas(64) std::atomic<std::uint32_t> num_grants{0};  // written by the receiver
  std::atomic<std::uint32_t> num_closed{0};  // by the sender: it won't use those before any more
  PushEnd pusher;
  PushEnd landing;
  std::array<Grant, kMaxGrants> grants;
};

// Where a push is, for the receiver; travels with the message that announces it.
struct Pushed {
  std::uint32_t grant = 0;
  std::uint32_t number = 0;
  std::uint32_t slot = 0;
  std::uint32_t stream = 0;  // of the sender's: which word tells of its arrival
};

// Whether `word`, which wraps around, has come to `number`.
inline bool has_reached(std::uint32_t word, std::uint32_t number) {
  return static_cast<std::int32_t>(word - number) >= 0;
}

// Parts of one push lie one after the other, each at a multiple of this.
constexpr std::size_t kPartAlignment = 256;

inline std::size_t align_part(std::size_t offset) {
  return (offset + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// By the sender's process. SegmentError if it can't be had.
std::unique_ptr<Segment> make_push_segment(const std::string& folder = "/dev/shm",
                                           std::uint32_t first_number = 0);
// By the receiver's, which removes the name.
std::unique_ptr<Segment> open_push_segment(const std::string& name,
                                           const std::string& folder = "/dev/shm");

// Of a segment that holds one. SegmentError if it doesn't.
PushBoard& push_board(const Segment& segment);
// Whole pages.
std::size_t push_board_bytes();

}  // namespace pipert

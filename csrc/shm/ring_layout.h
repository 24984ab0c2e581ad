// What lies at the start of the segment of a ring: one writer, one reader, messages in the order in
// which they were written.
//
// A message is one piece, or several where there is no room for it at once: a range of the segment
// that the writer chooses, described by an entry of `pieces`. The reader takes the pieces in order;
// what it has taken the writer may use again: that is all the flow control there is.
//
// Note [Loans]
//
// A piece may be lent: the reader needn't copy it out, and may keep it after it has taken it, for
// as long as it likes and in any order. The writer sets the loan's flag before it publishes the
// piece, the reader clears it; until then the range isn't written again.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "shm/doorbell.h"
#include "shm/process_id.h"

namespace pipert {

constexpr std::size_t kNumPieces = 512;  // that may be on their way
constexpr std::size_t kNumLoans = 512;   // that the reader may have at a time
constexpr std::uint64_t kNoLoan = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kRingMagic = 0x70697065'72743032;

struct alignas(64) RingPiece {
  std::uint64_t offset = 0;  // in the segment
  std::uint64_t num_bytes = 0;
  std::uint64_t message_bytes = 0;            // of the whole message, in each of its pieces
  std::uint64_t loan = kNoLoan;               // index of its flag; a message of one piece alone
  std::atomic<std::uint64_t> num_written{0};  // bytes of this piece: the reader follows the writer
};

// One end. Its counters are written by that end alone, the bell is rung by the other.
struct RingSide {
  alignas(64) std::atomic<std::uint64_t> num_pieces{0};  // published, or taken
  std::atomic<std::uint64_t> num_messages{0};            // whole ones, taken
  alignas(64) Doorbell bell;
  std::atomic<std::uint32_t> is_open{0};  // 1 from when `process` is written
  std::atomic<std::uint32_t> is_closed{0};
  ProcessId process;
};

struct RingLayout {
  std::uint64_t magic = kRingMagic;
  std::uint64_t num_bytes = sizeof(RingLayout);  // another number in another version
  RingSide writer;
  RingSide reader;
  std::array<RingPiece, kNumPieces> pieces;
  std::array<std::atomic<std::uint32_t>, kNumLoans> loans{};  // 1: the reader has it
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);  // else it couldn't be shared

}  // namespace pipert

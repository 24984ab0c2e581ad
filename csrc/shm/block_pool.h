// BlockPool: the ranges of a segment that one writer hands out to its messages and gets back when
// the reader has taken them, or has returned them if they were lent. Belongs to the writer; of it
// only the flags of loans are shared (ring_layout.h, Note [Loans]).
//
// Grows with the longest messages and the number of those that are on their way; sizes are rounded
// up to one of four for each power of two, so that sizes that change keep finding the same blocks.
// What isn't used for some passes goes back to the system.
//
// The first blocks are never lent, so there is always one that comes back, whatever the reader
// keeps. Of the others, those are that left half of /dev/shm free when they were made: what the
// reader keeps shall not be what somebody else lacks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "shm/ring_layout.h"
#include "shm/segment.h"

namespace pipert {

class BlockPool {
 public:
  static constexpr std::size_t kFirstBytes = std::size_t{64} << 10;
  static constexpr std::size_t kNumFirst = 4;
  static constexpr int kKeptPasses = 8;

  struct Block {
    std::size_t offset = 0;
    std::size_t num_bytes = 0;
    std::uint64_t free_at = 0;  // when the reader has taken so many pieces
    std::int64_t last_pass = 0;
    bool is_backed = true;         // by memory of the system
    std::uint64_t loan = kNoLoan;  // the index of its flag, if it may be lent
  };

  // The first blocks lie at `offset`; they are always there. The segment grows behind its end.
  // `loans`: the flags, all 0.
  BlockPool(Segment& segment, std::size_t offset, std::span<std::atomic<std::uint32_t>> loans);

  // The smallest free block of at least `num_bytes`, a new one if there is none; null if there is
  // no room for it. `taken`: how many pieces the reader has. The caller sets `free_at`. The pointer
  // is good until the next call.
  Block* take(std::size_t num_bytes, std::uint64_t taken);
  // The largest free block that has memory; null if none is free.
  Block* take_largest(std::uint64_t taken);
  bool has_free(std::uint64_t taken) const;
  void begin_pass(std::uint64_t taken);
  // To the system: all that is free, but the first blocks.
  void give_back_free(std::uint64_t taken);
  // Of the system's memory that it has.
  std::size_t num_bytes() const;

 private:
  bool is_free(const Block& block, std::uint64_t taken) const;
  Block* make(std::size_t num_bytes, std::uint64_t taken);
  bool take_again(Block& block);
  void give_back(Block& block);
  // For a block whose memory was just taken from the system.
  std::uint64_t loan_of(const Block& block) const;

  Segment& segment_;
  std::span<std::atomic<std::uint32_t>> loans_;
  std::vector<Block> blocks_;
  std::int64_t pass_ = 0;
};

}  // namespace pipert

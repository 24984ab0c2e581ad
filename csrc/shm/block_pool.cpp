#include "shm/block_pool.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace pipert {
namespace {

// One of four sizes for each power of two, whole pages.
std::size_t round_up(std::size_t num_bytes) {
  constexpr std::size_t kPage = 4096;
  const std::size_t step = std::max(kPage, std::bit_floor(num_bytes) / 4);
  return (num_bytes + step - 1) / step * step;
}

}  // namespace

BlockPool::BlockPool(Segment& segment, std::size_t offset) : segment_(segment) {
  for (std::size_t i = 0; i < kNumFirst; ++i)
    blocks_.push_back({.offset = offset + i * kFirstBytes, .num_bytes = kFirstBytes});
}

BlockPool::Block* BlockPool::take(std::size_t num_bytes, std::uint64_t taken) {
  Block* best = nullptr;
  for (Block& block : blocks_) {
    const bool fits = block.free_at <= taken && block.num_bytes >= num_bytes;
    if (!fits || (best != nullptr && best->num_bytes <= block.num_bytes)) continue;
    best = &block;
  }
  if (best != nullptr && !best->is_backed) {
    best->is_backed = segment_.take_again(best->offset, best->num_bytes);
    if (!best->is_backed) best = nullptr;
  } else if (best == nullptr) {
    best = make(num_bytes, taken);
  }
  if (best != nullptr) best->last_pass = pass_;
  return best;
}

BlockPool::Block* BlockPool::make(std::size_t num_bytes, std::uint64_t taken) {
  if (num_bytes > Segment::kMaxBytes) return nullptr;
  const std::size_t size = round_up(num_bytes);
  const std::size_t offset = segment_.num_bytes();
  if (!segment_.grow(size)) {
    for (std::size_t i = kNumFirst; i < blocks_.size(); ++i) {  // too small, or it had been taken
      if (blocks_[i].free_at <= taken && blocks_[i].is_backed) give_back(blocks_[i]);
    }
    if (!segment_.grow(size)) return nullptr;
  }
  return &blocks_.emplace_back(Block{.offset = offset, .num_bytes = size});
}

BlockPool::Block* BlockPool::take_largest(std::uint64_t taken) {
  Block* best = nullptr;
  for (Block& block : blocks_) {
    if (block.free_at > taken || !block.is_backed) continue;
    if (best == nullptr || best->num_bytes < block.num_bytes) best = &block;
  }
  if (best != nullptr) best->last_pass = pass_;
  return best;
}

std::uint64_t BlockPool::next_free_at() const {
  std::uint64_t next = std::numeric_limits<std::uint64_t>::max();
  for (const Block& block : blocks_) {
    if (block.is_backed) next = std::min(next, block.free_at);
  }
  return next;
}

void BlockPool::begin_pass(std::uint64_t taken) {
  ++pass_;
  for (std::size_t i = kNumFirst; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    const bool is_idle = block.free_at <= taken && block.last_pass + kKeptPasses < pass_;
    if (is_idle && block.is_backed) give_back(block);
  }
}

void BlockPool::give_back(Block& block) {
  segment_.give_back(block.offset, block.num_bytes);
  block.is_backed = false;
}

std::size_t BlockPool::num_bytes() const {
  std::size_t sum = 0;
  for (const Block& block : blocks_) sum += block.is_backed ? block.num_bytes : 0;
  return sum;
}

}  // namespace pipert

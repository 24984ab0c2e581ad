#include "shm/block_pool.h"

#include <algorithm>
#include <bit>

namespace pipert {
namespace {

// One of four sizes for each power of two, whole pages.
std::size_t round_up(std::size_t num_bytes) {
  constexpr std::size_t kPage = 4096;
  const std::size_t step = std::max(kPage, std::bit_floor(num_bytes) / 4);
  return (num_bytes + step - 1) / step * step;
}

}  // namespace

BlockPool::BlockPool(Segment& segment, std::size_t offset,
                     std::span<std::atomic<std::uint32_t>> loans)
    : segment_(segment), loans_(loans) {
  for (std::size_t i = 0; i < kNumFirst; ++i)
    blocks_.push_back({.offset = offset + i * kFirstBytes, .num_bytes = kFirstBytes});
}

bool BlockPool::is_free(const Block& block, std::uint64_t taken) const {
  return block.free_at <= taken && (block.loan == kNoLoan || loans_[block.loan].load() == 0);
}

BlockPool::Block* BlockPool::take(std::size_t num_bytes, std::uint64_t taken) {
  Block* best = nullptr;
  for (Block& block : blocks_) {
    if (block.num_bytes < num_bytes || !is_free(block, taken)) continue;
    if (best == nullptr || best->num_bytes > block.num_bytes) best = &block;
  }
  if (best == nullptr) best = make(num_bytes, taken);
  if (best == nullptr || (!best->is_backed && !take_again(*best))) return nullptr;
  best->last_pass = pass_;
  return best;
}

BlockPool::Block* BlockPool::make(std::size_t num_bytes, std::uint64_t taken) {
  if (num_bytes > Segment::kMaxBytes) return nullptr;
  const std::size_t size = round_up(num_bytes);
  const std::size_t offset = segment_.num_bytes();
  if (!segment_.grow(size)) {
    give_back_free(taken);  // they were too small
    if (!segment_.grow(size)) return nullptr;
  }
  Block& block = blocks_.emplace_back(Block{.offset = offset, .num_bytes = size});
  block.loan = loan_of(block);
  return &block;
}

bool BlockPool::take_again(Block& block) {
  block.is_backed = segment_.take_again(block.offset, block.num_bytes);
  block.loan = loan_of(block);
  return block.is_backed;
}

std::uint64_t BlockPool::loan_of(const Block& block) const {
  const auto index = static_cast<std::size_t>(&block - blocks_.data());
  const bool has_flag = index >= kNumFirst && index - kNumFirst < loans_.size();
  // Sizes that grow leave blocks behind that nobody fits into: addresses must last for those too.
  const bool has_addresses = segment_.num_bytes() <= Segment::kMaxBytes / 2;
  return has_flag && has_addresses && segment_.is_half_free() ? index - kNumFirst : kNoLoan;
}

BlockPool::Block* BlockPool::take_largest(std::uint64_t taken) {
  Block* best = nullptr;
  for (Block& block : blocks_) {
    if (!block.is_backed || !is_free(block, taken)) continue;
    if (best == nullptr || best->num_bytes < block.num_bytes) best = &block;
  }
  if (best != nullptr) best->last_pass = pass_;
  return best;
}

bool BlockPool::has_free(std::uint64_t taken) const {
  return std::any_of(blocks_.begin(), blocks_.end(),
                     [&](const Block& block) { return block.is_backed && is_free(block, taken); });
}

void BlockPool::begin_pass(std::uint64_t taken) {
  ++pass_;
  for (std::size_t i = kNumFirst; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    const bool is_idle = block.last_pass + kKeptPasses < pass_ && is_free(block, taken);
    if (is_idle && block.is_backed) give_back(block);
  }
}

void BlockPool::give_back_free(std::uint64_t taken) {
  for (std::size_t i = kNumFirst; i < blocks_.size(); ++i) {
    if (is_free(blocks_[i], taken) && blocks_[i].is_backed) give_back(blocks_[i]);
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

#include "caching_allocator_fake.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/cuda_event.h"
#include "cuda_fake.h"
#include "torch_cuda_fake.h"

namespace pipert::cuda_fake {
namespace {

constexpr std::size_t kRound = 512;
constexpr std::size_t kArena = 1 << 20;
constexpr int kHost = -1;

std::size_t rounded(std::size_t num_bytes) { return (num_bytes + kRound - 1) / kRound * kRound; }

// Whose memory a free block is.
using Place = std::tuple<int, cuda::Stream, std::size_t>;  // device or kHost, stream, bytes

struct Block {
  char* memory = nullptr;
  Place place;
  std::set<cuda::Stream> adopters;
  std::vector<std::unique_ptr<CudaEvent>> unfinished;  // of a block that was freed
};

class Blocks {
 public:
  Block* take(const Place& place) {
    const std::lock_guard lock(mutex_);
    settle();
    auto& free = free_[place];
    if (!free.empty()) {
      Block* block = free.back();  // as early as can be
      free.pop_back();
      return block;
    }
    Block& block = *all_.emplace_back(std::make_unique<Block>());
    block.place = place;
    block.memory = carve(std::get<int>(place), std::get<std::size_t>(place));
    by_memory_[block.memory] = &block;
    return &block;
  }

  void give_back(Block* block) {
    const int device = current_device();
    const std::lock_guard lock(mutex_);
    for (const cuda::Stream stream : std::exchange(block->adopters, {})) {
      set_current_device(device_of(stream));
      block->unfinished.push_back(std::make_unique<CudaEvent>());
      cuda::record(block->unfinished.back()->get(), stream);
    }
    set_current_device(device);
    unfinished_.push_back(block);
    settle();
  }

  void adopt(const void* memory, cuda::Stream stream) {
    const std::lock_guard lock(mutex_);
    const auto found = by_memory_.find(memory);
    if (found == by_memory_.end() || std::get<cuda::Stream>(found->second->place) == stream) return;
    if (leaves_out_adoption(stream)) return;
    found->second->adopters.insert(stream);
  }

  bool is_pinned(const void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = by_memory_.find(memory);
    return found != by_memory_.end() && std::get<int>(found->second->place) == kHost;
  }

 private:
  void settle() {
    std::erase_if(unfinished_, [this](Block* block) {
      std::erase_if(block->unfinished, [](auto& event) { return cuda::is_done(event->get()); });
      if (!block->unfinished.empty()) return false;
      free_[block->place].push_back(block);
      return true;
    });
  }

  char* carve(int device, std::size_t num_bytes) {
    Arena& arena = arenas_[device];
    if (arena.left < num_bytes) {
      arena.left = std::max(kArena, num_bytes);
      arena.next = static_cast<char*>(cuda::allocate(arena.left));
    }
    arena.left -= num_bytes;
    return std::exchange(arena.next, arena.next + num_bytes);
  }

  struct Arena {
    char* next = nullptr;
    std::size_t left = 0;
  };

  std::mutex mutex_;
  std::map<int, Arena> arenas_;
  std::vector<std::unique_ptr<Block>> all_;
  std::map<const void*, Block*> by_memory_;
  std::map<Place, std::vector<Block*>> free_;
  std::vector<Block*> unfinished_;
};

// Never destroyed: tensors may die after everything else.
Blocks& blocks() {
  static auto* const all = new Blocks;
  return *all;
}

void give_back(void* block) { blocks().give_back(static_cast<Block*>(block)); }

class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t num_bytes) override {
    const int device = current_device();
    const c10::Device place(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
    if (num_bytes == 0) return {nullptr, place};
    const cuda::Stream stream = current_stream(device);
    Block* const block = blocks().take({device, stream, rounded(num_bytes)});
    launch(stream, [memory = block->memory, size = rounded(num_bytes)] {
      std::memset(memory, kPoison, size);
    });
    return {block->memory, block, &give_back, place};
  }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }
};

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t num_bytes) override {
    Block* const block = blocks().take({kHost, nullptr, rounded(num_bytes)});
    std::memset(block->memory, kPoison, rounded(num_bytes));
    return {block->memory, block, &give_back, c10::kCPU};
  }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }
};

}  // namespace

c10::Allocator& device_allocator() {
  static DeviceAllocator allocator;
  return allocator;
}

c10::Allocator& pinned_allocator() {
  static PinnedAllocator allocator;
  return allocator;
}

bool is_pinned(const void* memory) { return blocks().is_pinned(memory); }

void adopt(const c10::DataPtr& memory, cuda::Stream stream) {
  blocks().adopt(memory.get(), stream);
}

}  // namespace pipert::cuda_fake

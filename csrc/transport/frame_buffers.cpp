#include "transport/frame_buffers.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>

#include <bit>
#include <map>
#include <mutex>
#include <utility>

namespace pipert {
namespace {

// Smaller ones the allocator keeps itself.
constexpr std::int64_t kLargeBytes = std::int64_t{128} << 10;
constexpr int kKeptPasses = 8;

// One of four sizes for each power of two.
std::int64_t round_up(std::int64_t num_bytes) {
  const auto step =
      static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(num_bytes)) / 4);
  return (num_bytes + step - 1) / step * step;
}

}  // namespace

class FrameBuffers::Shelf : public std::enable_shared_from_this<Shelf> {
  struct Lent {
    std::shared_ptr<Shelf> shelf;
    c10::DataPtr memory;
    std::int64_t size = 0;
  };
  struct Kept {
    c10::DataPtr memory;
    std::int64_t last_pass = 0;
  };

 public:
  at::Tensor take(std::int64_t num_bytes) {
    const std::int64_t size = round_up(num_bytes);
    c10::DataPtr memory = find(size);
    if (memory) {
      report(memory, size);
    } else {
      memory = c10::GetCPUAllocator()->allocate(static_cast<std::size_t>(size));
    }
    void* const data = memory.get();
    auto* const lent = new Lent{shared_from_this(), std::move(memory), size};
    return at::from_blob(
        data, {num_bytes}, [lent](void*) { lent->shelf->put_back(lent); },
        at::TensorOptions().dtype(at::kByte));
  }

  void begin_pass() {
    std::multimap<std::int64_t, Kept> idle;  // dies without the lock
    const std::lock_guard lock(mutex_);
    ++pass_;
    for (auto at = kept_.begin(); at != kept_.end();) {
      const auto entry = at++;
      if (entry->second.last_pass + kKeptPasses < pass_) idle.insert(kept_.extract(entry));
    }
  }

  void close() {
    std::multimap<std::int64_t, Kept> kept;  // dies without the lock
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    kept.swap(kept_);
  }

 private:
  // To whoever counts the thread's memory: what is kept is nobody's.
  static void report(const c10::DataPtr& memory, std::int64_t change) {
    if (!c10::memoryProfilingEnabled()) return;
    c10::reportMemoryUsageToProfiler(memory.get(), change, 0, 0, c10::Device(c10::kCPU));
  }

  // The one that came back last.
  c10::DataPtr find(std::int64_t size) {
    const std::lock_guard lock(mutex_);
    auto found = kept_.upper_bound(size);
    if (found == kept_.begin() || (--found)->first != size) return {};
    c10::DataPtr memory = std::move(found->second.memory);
    kept_.erase(found);
    return memory;
  }

  void put_back(Lent* lent) {
    const std::unique_ptr<Lent> owner(lent);  // this lives as long as it does
    const std::lock_guard lock(mutex_);
    if (is_closed_) return;
    report(owner->memory, -owner->size);
    kept_.emplace(owner->size, Kept{std::move(owner->memory), pass_});
  }

  std::mutex mutex_;
  std::multimap<std::int64_t, Kept> kept_;  // by size
  std::int64_t pass_ = 0;
  bool is_closed_ = false;
};

FrameBuffers::FrameBuffers() : shelf_(std::make_shared<Shelf>()) {}
FrameBuffers::~FrameBuffers() { shelf_->close(); }

at::Tensor FrameBuffers::take(std::int64_t num_bytes) {
  if (num_bytes < kLargeBytes) return at::empty({num_bytes}, at::TensorOptions().dtype(at::kByte));
  return shelf_->take(num_bytes);
}

void FrameBuffers::begin_pass() { shelf_->begin_pass(); }

}  // namespace pipert

#include "device/memory_meter.h"

#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/profiler/orchestration/observer.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace pipert {
namespace {

// No constant: an enumerator up to torch 2.12, then an object.
c10::DebugInfoKind place() { return c10::DebugInfoKind::PROFILER_STATE; }

const void* memory_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  return tensor.storage().data_ptr().get();
}

}  // namespace

// A ProfilerStateBase, because torch takes whatever is in the place for one when it is asked
// whether a profiler is on. It says that none is.
class MemoryMeter::Counter final : public torch::profiler::impl::ProfilerStateBase {
 public:
  explicit Counter(const c10::Device& device)
      : ProfilerStateBase(torch::profiler::impl::ProfilerConfig(
            torch::profiler::impl::ProfilerState::Disabled, /*report_input_shapes=*/false,
            /*profile_memory=*/true)),
        device_(device) {}
  ~Counter() override { reset(); }

  torch::profiler::impl::ActiveProfilerType profilerType() override {
    return torch::profiler::impl::ActiveProfilerType::NONE;
  }

  void reportMemoryUsage(void* memory, std::int64_t bytes, std::size_t /*total_allocated*/,
                         std::size_t /*total_reserved*/, c10::Device device) override {
    if (device.type() != device_.type()) return;
    const std::lock_guard lock(ledger().mutex);
    drop(memory);  // an allocation too: its memory may have been freed where nobody looked
    if (bytes > 0) {
      ledger().entries[memory] = {this, bytes};
      add(bytes);
    }
  }

  void reset() {
    const std::lock_guard lock(ledger().mutex);
    std::erase_if(ledger().entries, [this](const auto& entry) {
      return entry.second.owner == this || entry.second.owner == nullptr;
    });
    bytes_ = peak_ = 0;
  }

  // `from`: null for nobody's, as `to`.
  static void pass_on(const void* memory, Counter* from, Counter* to) {
    const std::lock_guard lock(ledger().mutex);
    const auto found = ledger().entries.find(memory);
    if (found == ledger().entries.end() || found->second.owner != from) return;
    if (from != nullptr) from->add(-found->second.bytes);
    if (to != nullptr) to->add(found->second.bytes);
    found->second.owner = to;
  }

  std::int64_t bytes() const { return bytes_; }
  std::int64_t peak() const { return peak_; }

 private:
  struct Entry {
    Counter* owner = nullptr;
    std::int64_t bytes = 0;
  };
  struct Ledger {
    std::mutex mutex;
    std::unordered_map<const void*, Entry> entries;  // by address
  };

  // Never destroyed: tensors may die after everything else.
  static Ledger& ledger() {
    static auto* const the_one = new Ledger;
    return *the_one;
  }

  // REQUIRES the ledger's mutex, as the next.
  void add(std::int64_t bytes) {
    bytes_ += bytes;
    peak_ = std::max<std::int64_t>(peak_, bytes_);
  }

  static void drop(const void* memory) {
    const auto found = ledger().entries.find(memory);
    if (found == ledger().entries.end()) return;
    if (found->second.owner != nullptr) found->second.owner->add(-found->second.bytes);
    ledger().entries.erase(found);
  }

  c10::Device device_;
  // Written with the ledger's mutex.
  std::atomic<std::int64_t> bytes_ = 0;
  std::atomic<std::int64_t> peak_ = 0;
};

namespace {

class InPlace final : public MemoryMeter::Measuring {
 public:
  explicit InPlace(std::shared_ptr<c10::DebugInfoBase> counter)
      : guard_(place(), std::move(counter)) {}

 private:
  c10::DebugInfoGuard guard_;
};

}  // namespace

MemoryMeter::MemoryMeter(const c10::Device& device) : counter_(std::make_shared<Counter>(device)) {}
MemoryMeter::~MemoryMeter() = default;

void MemoryMeter::reset() { counter_->reset(); }

std::unique_ptr<MemoryMeter::Measuring> MemoryMeter::start() {
  if (c10::ThreadLocalDebugInfo::get(place()) != nullptr) return nullptr;
  return std::make_unique<InPlace>(counter_);
}

std::int64_t MemoryMeter::bytes() const { return counter_->bytes(); }
std::int64_t MemoryMeter::peak() const { return counter_->peak(); }

void MemoryMeter::give(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors) {
    const void* memory = memory_of(tensor);
    if (memory == nullptr || tensor.storage().use_count() > 1) continue;
    Counter::pass_on(memory, counter_.get(), nullptr);
  }
}

void MemoryMeter::take(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& tensor : tensors)
    Counter::pass_on(memory_of(tensor), nullptr, counter_.get());
}

void MemoryMeter::forget(const at::Tensor& tensor) {
  auto* counter = dynamic_cast<Counter*>(c10::ThreadLocalDebugInfo::get(place()));
  if (counter != nullptr) Counter::pass_on(memory_of(tensor), counter, nullptr);
}

}  // namespace pipert

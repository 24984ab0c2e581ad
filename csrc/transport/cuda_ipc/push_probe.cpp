#include "transport/push_probe.h"

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ipc/landing.h"
#include "ipc/pusher.h"

namespace pipert {
namespace {

using SegmentPtr = std::shared_ptr<Segment>;

constexpr char kBetweenNames = ' ';
constexpr std::size_t kWordsBytes = 4096;
constexpr std::uint32_t kNumSlots = 4;

// A new segment's bytes are zero.
struct ProbeWords {
  alignas(64) std::atomic<std::uint32_t> gate;  // of the source's streams
  alignas(64) std::atomic<std::uint32_t> there;
  alignas(64) std::atomic<std::uint32_t> back;
  std::atomic<std::uint32_t> num_streams;  // that push, written by the source
};
static_assert(sizeof(ProbeWords) <= kWordsBytes);

// What both ends have.
class ProbeEnd : public PushProbe {
 public:
  ProbeEnd(SegmentPtr board, SegmentPtr flags)
      : board_(std::move(board)),
        flags_(std::move(flags)),
        words_(*reinterpret_cast<ProbeWords*>(flags_->data())),
        registered_(flags_->data(), kWordsBytes) {}

  std::string name() const override {
    return concat(board_->name(), kBetweenNames, flags_->name());
  }
  void finish() override { cuda::synchronize(stream_.get()); }

 protected:
  std::uint32_t* on_device(std::atomic<std::uint32_t>& word) const {
    return registered_.on_device(word);
  }
  std::uint32_t last_grant() const { return push_board(*board_).num_grants.load() - 1; }

  void make_buffers(std::size_t num_bytes) {
    buffers_.clear();
    for (std::uint32_t i = 0; i < kNumSlots + 1; ++i) buffers_.emplace_back(num_bytes);
    num_bytes_ = num_bytes;
  }
  // Into each of so many by turns.
  void copy(int turn, int num_destinations, std::size_t num_bytes) {
    char* const destination = buffers_.at(static_cast<std::size_t>(turn % num_destinations)).data();
    cuda::copy_on_device(destination, source(), num_bytes, stream_.get());
  }
  char* source() const { return buffers_.back().data(); }
  char* buffer(std::uint32_t slot) const { return buffers_[slot].data(); }

  SegmentPtr board_;
  SegmentPtr flags_;
  ProbeWords& words_;
  RegisteredMemory registered_;
  CudaStream stream_;
  std::size_t num_bytes_ = 0;
  std::uint32_t num_pushes_ = 0;
  std::uint32_t num_hops_ = 0;

 private:
  std::vector<DeviceMemory> buffers_;  // the last one is the source of all
};

[[noreturn]] void refuse(const char* end) {
  throw ValueError(concat("a probe's ", end, " was asked for what its other end does"));
}

class ProbeSource final : public ProbeEnd {
 public:
  ProbeSource(SegmentPtr board, SegmentPtr flags, std::uint32_t num_streams)
      : ProbeEnd(std::move(board), std::move(flags)), pusher_(board_, num_streams) {}

  void prepare(std::size_t num_bytes) override {
    slots_.reset();
    make_buffers(num_bytes);
    pusher_.open_granted();
    const Grant& grant = push_board(*board_).grants.at(last_grant());
    slots_.emplace(grant.handle);
    slot_bytes_ = grant.slot_bytes;
  }
  void answer_pushes(int /*count*/, bool /*copies_out*/) override { refuse("source"); }
  void answer_hops(int /*count*/, std::size_t /*num_bytes*/) override { refuse("source"); }

  Timed time_pushes(int count) override {
    return time([&] {
      for (int i = 0; i < count; ++i) {
        const std::uint32_t slot = ++num_pushes_ % kNumSlots;
        if (!pusher_.push(slot, {{source(), num_bytes_}}, stream_.get()).has_value())
          throw InternalError("a probe's push found no slot");
      }
    });
  }
  Timed time_bare_pushes(int count) override {
    return time([&] {
      for (int i = 0; i < count; ++i) {
        const auto slot = static_cast<std::size_t>(i) % kNumSlots;
        cuda::copy_on_device(slots_->data() + slot * slot_bytes_, source(), num_bytes_,
                             stream_.get());
      }
    });
  }
  Timed time_copies(int count, int num_destinations) override {
    return time([&] {
      for (int i = 0; i < count; ++i) copy(i, num_destinations, num_bytes_);
    });
  }
  Timed time_hops(int count, std::size_t num_bytes) override {
    return time([&] {
      for (int i = 0; i < count; ++i) {
        ++num_hops_;
        if (num_bytes > 0) copy(0, 1, num_bytes);
        cuda::write_value(stream_.get(), on_device(words_.there), num_hops_);
        cuda::wait_value(stream_.get(), on_device(words_.back), num_hops_);
      }
    });
  }

 private:
  // Gives it all behind a gate, so that the host's part is over before the time runs.
  template <typename Give>
  Timed time(const Give& give) {
    using std::chrono::duration;
    using std::chrono::steady_clock;
    const auto begun = steady_clock::now();
    cuda::wait_value(stream_.get(), on_device(words_.gate), ++num_gates_);
    give();
    const auto opened = steady_clock::now();
    words_.gate.store(num_gates_);
    finish();
    for (std::uint32_t i = 0; i < pusher_.num_streams(); ++i) cuda::synchronize(pusher_.stream(i));
    return {duration<double>(steady_clock::now() - opened).count(),
            duration<double>(opened - begun).count()};
  }

  Pusher pusher_;
  std::optional<ImportedMemory> slots_;  // of the other end, once more
  std::size_t slot_bytes_ = 0;
  std::uint32_t num_gates_ = 0;
};

class ProbeDestination final : public ProbeEnd {
 public:
  ProbeDestination(SegmentPtr board, SegmentPtr flags)
      : ProbeEnd(std::move(board), std::move(flags)), landing_(board_) {}

  void prepare(std::size_t num_bytes) override {
    make_buffers(num_bytes);
    landing_.grow(kNumSlots, num_bytes);
  }
  void answer_pushes(int count, bool copies_out) override {
    const std::uint32_t num_streams = words_.num_streams.load();
    for (int i = 0; i < count; ++i) {
      // As its source counts: all slots, and all of the pusher's streams, by turns.
      const std::uint32_t slot = ++num_pushes_ % kNumSlots;
      const Pushed pushed{last_grant(), num_pushes_, slot, num_pushes_ % num_streams};
      std::vector<Landing::Part> parts;
      if (copies_out) parts.push_back({buffer(slot), num_bytes_});
      if (!landing_.take(pushed, parts, stream_.get()))
        throw InternalError("a probe's other end is gone");
    }
  }
  void answer_hops(int count, std::size_t num_bytes) override {
    for (int i = 0; i < count; ++i) {
      ++num_hops_;
      cuda::wait_value(stream_.get(), on_device(words_.there), num_hops_);
      if (num_bytes > 0) copy(0, 1, num_bytes);
      cuda::write_value(stream_.get(), on_device(words_.back), num_hops_);
    }
  }
  Timed time_pushes(int /*count*/) override { refuse("destination"); }
  Timed time_bare_pushes(int /*count*/) override { refuse("destination"); }
  Timed time_copies(int /*count*/, int /*num_destinations*/) override { refuse("destination"); }
  Timed time_hops(int /*count*/, std::size_t /*num_bytes*/) override { refuse("destination"); }

 private:
  Landing landing_;
};

}  // namespace

std::shared_ptr<PushProbe> make_push_probe(std::uint32_t num_streams) {
  SegmentPtr board = make_push_segment();
  SegmentPtr flags = Segment::create(kWordsBytes);
  reinterpret_cast<ProbeWords*>(flags->data())->num_streams.store(num_streams);
  return std::make_shared<ProbeSource>(std::move(board), std::move(flags), num_streams);
}

std::shared_ptr<PushProbe> open_push_probe(const std::string& name) {
  const std::size_t end = name.find(kBetweenNames);
  if (end == std::string::npos)
    throw ValueError(concat("expected the names of two segments, got '", name, "'"));
  SegmentPtr board = open_push_segment(name.substr(0, end));
  SegmentPtr flags = Segment::open(name.substr(end + 1), kWordsBytes);
  flags->remove_name();
  return std::make_shared<ProbeDestination>(std::move(board), std::move(flags));
}

}  // namespace pipert

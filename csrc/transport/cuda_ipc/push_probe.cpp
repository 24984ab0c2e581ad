#include "transport/push_probe.h"

#include <chrono>
#include <utility>

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

 protected:
  std::uint32_t* on_device(std::atomic<std::uint32_t>& word) const {
    return registered_.on_device(word);
  }

  SegmentPtr board_;
  SegmentPtr flags_;
  ProbeWords& words_;
  RegisteredMemory registered_;
  CudaStream stream_;
  std::uint32_t num_pushes_ = 0;
  std::uint32_t num_flags_ = 0;
};

[[noreturn]] void refuse(const char* end) {
  throw ValueError(concat("a probe's ", end, " was asked for what its other end does"));
}

class ProbeSource final : public ProbeEnd {
 public:
  ProbeSource(SegmentPtr board, SegmentPtr flags)
      : ProbeEnd(std::move(board), std::move(flags)), pusher_(board_) {}

  void prepare(std::size_t num_bytes) override {
    buffers_.clear();
    for (std::uint32_t i = 0; i < kNumSlots + 1; ++i) buffers_.emplace_back(num_bytes);
    num_bytes_ = num_bytes;
    pusher_.open_granted();
  }
  void answer_pushes(int /*count*/) override { refuse("source"); }
  void answer_flags(int /*count*/) override { refuse("source"); }
  void finish() override { cuda::synchronize(stream_.get()); }

  double time_pushes(int count) override {
    close_gate();
    for (int i = 0; i < count; ++i) {
      ++num_pushes_;
      const Pusher::Part part{buffers_.back().data(), num_bytes_};
      if (!pusher_.push(num_pushes_ % kNumSlots, {part}, stream_.get()).has_value())
        throw InternalError("a probe's push found no slot");
    }
    return time(pusher_.stream());
  }
  double time_copies(int count, int num_destinations) override {
    close_gate();
    for (int i = 0; i < count; ++i) {
      char* const destination = buffers_.at(static_cast<std::size_t>(i % num_destinations)).data();
      cuda::copy_on_device(destination, buffers_.back().data(), num_bytes_, stream_.get());
    }
    return time(stream_.get());
  }
  double time_flags(int count) override {
    close_gate();
    for (int i = 0; i < count; ++i) {
      ++num_flags_;
      cuda::write_value(stream_.get(), on_device(words_.there), num_flags_);
      cuda::wait_value(stream_.get(), on_device(words_.back), num_flags_);
    }
    return time(stream_.get());
  }

 private:
  // So that the host's part is over before the time runs.
  void close_gate() { cuda::wait_value(stream_.get(), on_device(words_.gate), ++num_gates_); }
  double time(cuda::Stream stream) {
    const auto start = std::chrono::steady_clock::now();
    words_.gate.store(num_gates_);
    cuda::synchronize(stream);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  Pusher pusher_;
  std::vector<DeviceMemory> buffers_;  // the last one is the source of all
  std::size_t num_bytes_ = 0;
  std::uint32_t num_gates_ = 0;
};

class ProbeDestination final : public ProbeEnd {
 public:
  ProbeDestination(SegmentPtr board, SegmentPtr flags)
      : ProbeEnd(std::move(board), std::move(flags)), landing_(board_) {}

  void prepare(std::size_t num_bytes) override { landing_.grow(kNumSlots, num_bytes); }
  // Nothing is copied out of the slots: that would take a share of the memory's bandwidth.
  void answer_pushes(int count) override {
    const std::uint32_t grant = push_board(*board_).num_grants.load() - 1;
    for (int i = 0; i < count; ++i) {
      ++num_pushes_;
      const Pushed pushed{grant, num_pushes_, num_pushes_ % kNumSlots};
      if (!landing_.take(pushed, {}, stream_.get()))
        throw InternalError("a probe's other end is gone");
    }
  }
  void answer_flags(int count) override {
    for (int i = 0; i < count; ++i) {
      ++num_flags_;
      cuda::wait_value(stream_.get(), on_device(words_.there), num_flags_);
      cuda::write_value(stream_.get(), on_device(words_.back), num_flags_);
    }
  }
  void finish() override { cuda::synchronize(stream_.get()); }
  double time_pushes(int /*count*/) override { refuse("destination"); }
  double time_copies(int /*count*/, int /*num_destinations*/) override { refuse("destination"); }
  double time_flags(int /*count*/) override { refuse("destination"); }

 private:
  Landing landing_;
};

}  // namespace

std::shared_ptr<PushProbe> make_push_probe() {
  SegmentPtr board = make_push_segment();
  return std::make_shared<ProbeSource>(std::move(board), Segment::create(kWordsBytes));
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

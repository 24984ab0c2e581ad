#include <c10/core/DeviceGuard.h>

#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "device/cuda/cuda_stream.h"
#include "device/cuda_lane.h"
#include "device/current_stream.h"

namespace pipert {
namespace {

std::int64_t host_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// An event that takes the time, on the device that is current when it is made.
class TimingEvent {
 public:
  TimingEvent() : event_(cuda::create_timing_event()) {}
  ~TimingEvent() {
    if (event_ == nullptr) return;
    try {
      cuda::destroy_event(event_);
    } catch (const CudaError&) {  // the context is gone, and the event with it
    }
  }
  TimingEvent(TimingEvent&& other) noexcept
      : event_(std::exchange(other.event_, nullptr)), is_recorded_(other.is_recorded_) {}
  TimingEvent& operator=(TimingEvent&&) = delete;
  TimingEvent(const TimingEvent&) = delete;
  TimingEvent& operator=(const TimingEvent&) = delete;

  void forget() { is_recorded_ = false; }
  bool is_recorded() const { return is_recorded_; }
  void record(cuda::Stream stream) {
    cuda::record(event_, stream);
    is_recorded_ = true;
  }
  void wait() const { cuda::synchronize(event_); }
  std::int64_t ns_after(const TimingEvent& reference) const {
    const float milliseconds = cuda::milliseconds_between(reference.event_, event_);
    return std::llround(static_cast<double>(milliseconds) * 1e6);
  }

 private:
  cuda::Event event_;
  bool is_recorded_ = false;
};

class CudaTimes final : public DeviceTimes {
 public:
  CudaTimes(const c10::Device& device, std::size_t num_passes, std::size_t num_instructions)
      : device_(device), clock_(make_cuda_lane(device, LanePriority::kTransfer)) {
    const c10::DeviceGuard guard(device);
    passes_.resize(num_passes);
    for (Pass& pass : passes_) {
      pass.starts.resize(num_instructions);
      pass.ends.resize(num_instructions);
    }
  }

  void begin(std::size_t place) override {
    pass_ = &passes_[place];
    for (auto* events : {&pass_->starts, &pass_->ends}) {
      for (TimingEvent& event : *events) event.forget();
    }
    pass_->reference.forget();
    if (cuda::is_captured(current_stream(device_))) return;
    // On a lane that has nothing else to do the device takes the time between these two readings.
    const std::int64_t before = host_ns();
    pass_->reference.record(static_cast<CudaStreamLane&>(*clock_).stream());
    pass_->reference.wait();
    pass_->reference_ns = before + (host_ns() - before) / 2;
  }

  void start(std::size_t instruction, Lane& lane) override {
    record(pass_->starts[instruction], lane);
  }
  void end(std::size_t instruction, Lane& lane) override { record(pass_->ends[instruction], lane); }

  std::vector<DeviceSpan> read(std::size_t place) override {
    const Pass& pass = passes_[place];
    std::vector<DeviceSpan> spans(pass.starts.size());
    for (std::size_t i = 0; i < spans.size(); ++i)
      spans[i] = {time_of(pass.starts[i], pass), time_of(pass.ends[i], pass)};
    return spans;
  }

 private:
  struct Pass {
    TimingEvent reference;
    std::int64_t reference_ns = 0;    // of the host's clock
    std::vector<TimingEvent> starts;  // by instruction
    std::vector<TimingEvent> ends;
  };

  static void record(TimingEvent& event, Lane& lane) {
    const cuda::Stream stream = static_cast<CudaStreamLane&>(lane).stream();
    if (!cuda::is_captured(stream)) event.record(stream);
  }

  static std::int64_t time_of(const TimingEvent& event, const Pass& pass) {
    if (!event.is_recorded() || !pass.reference.is_recorded()) return 0;
    event.wait();
    return pass.reference_ns + event.ns_after(pass.reference);
  }

  c10::Device device_;
  std::unique_ptr<Lane> clock_;
  std::vector<Pass> passes_;
  Pass* pass_ = nullptr;  // the one at hand
};

}  // namespace

std::unique_ptr<DeviceTimes> make_cuda_times(const c10::Device& device, std::size_t num_passes,
                                             std::size_t num_instructions) {
  return std::make_unique<CudaTimes>(device, num_passes, num_instructions);
}

}  // namespace pipert

#include "device/accelerator_lane.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

namespace pipert {
namespace {

struct EventMark final : Mark {
  explicit EventMark(c10::DeviceType type) : event(type) {}  // an ordering event: no timing
  c10::Event event;
};

struct CurrentStream final : CurrentLane {
  explicit CurrentStream(const c10::Stream& stream) : guard(stream) {}
  c10::StreamGuard guard;
};

class AcceleratorLane final : public Lane {
 public:
  explicit AcceleratorLane(const c10::Stream& stream) : stream_(stream) {}

  bool is_asynchronous() const override { return true; }
  std::unique_ptr<Mark> make_mark() const override {
    return std::make_unique<EventMark>(stream_.device_type());
  }
  void record(Mark& mark) override { static_cast<EventMark&>(mark).event.record(stream_); }
  void wait(const Mark& mark) override {
    const c10::Event& event = static_cast<const EventMark&>(mark).event;
    TORCH_INTERNAL_ASSERT(event.was_marked_for_recording(),
                          "a lane waits for a mark that was never recorded");
    event.block(stream_);
  }
  void adopt(const at::Tensor& tensor) override {
    if (!tensor.defined() || tensor.device().type() != stream_.device_type()) return;
    const c10::impl::VirtualGuardImpl guard(stream_.device_type());
    guard.recordDataPtrOnStream(tensor.storage().data_ptr(), stream_);
  }
  std::unique_ptr<CurrentLane> make_current() override {
    return std::make_unique<CurrentStream>(stream_);
  }

 private:
  c10::Stream stream_;
};

}  // namespace

std::unique_ptr<Lane> make_accelerator_lane(const c10::Stream& stream) {
  return std::make_unique<AcceleratorLane>(stream);
}

}  // namespace pipert

#include "shm/ring_end.h"

#include <unistd.h>

#include <utility>

#include "base/error.h"

namespace pipert {

RingEnd::RingEnd(std::shared_ptr<Segment> segment, RingSide RingLayout::* own,
                 RingSide RingLayout::* other, std::chrono::microseconds spin)
    : segment_(std::move(segment)),
      layout_(reinterpret_cast<RingLayout*>(segment_->data())),
      own_(own),
      other_(other),
      spin_(spin),
      pid_(getpid()) {
  if (layout_->magic != kRingMagic || layout_->num_bytes != sizeof(RingLayout)) {
    throw SegmentError(
        concat("the shared memory ", segment_->name(), " holds no channel of this version"));
  }
  if (this->own().is_open.load() != 0)
    throw SegmentError(concat("the shared memory ", segment_->name(), " is in use"));
  this->own().process = this_process();
  this->own().is_open.store(1);
}

RingEnd::~RingEnd() {
  if (is_here()) abort();
}

bool RingEnd::is_here() const { return pid_ == getpid(); }

void RingEnd::abort() noexcept {
  aborted_.store(true);
  own().is_closed.store(1);
  other().bell.ring();
  own().bell.ring();  // this end's own waits
}

bool RingEnd::is_other_gone() const {
  return other().is_open.load() != 0 && !is_running(other().process);
}

void RingEnd::throw_gone() const {
  throw ProcessGone(
      concat("connection closed: process ", other().process.pid, " of the other end is gone"));
}

}  // namespace pipert

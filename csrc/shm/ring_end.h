// RingEnd: what the two ends of a ring have in common: the other end's life, and the end of waits.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>

#include "shm/connection_lost.h"
#include "shm/ring_layout.h"
#include "shm/segment.h"

namespace pipert {

// Used by one thread, save abort() and the waits, which any thread may call.
class RingEnd {
 public:
  RingEnd(std::shared_ptr<Segment> segment, RingSide RingLayout::* own,
          RingSide RingLayout::* other, std::chrono::microseconds spin);
  // Tells the other end.
  ~RingEnd();
  RingEnd(const RingEnd&) = delete;
  RingEnd& operator=(const RingEnd&) = delete;

  // Ends all waits of this end for good, and tells the other end.
  void abort() noexcept;
  bool is_aborted() const { return aborted_.load(); }
  // False in a fork of its process, which has the object, and none of the memory.
  bool is_here() const;

  // Waits until `has_come`. False if this end was aborted; ConnectionLost if the other one is gone
  // and it won't come any more.
  template <typename HasCome>
  bool wait(const HasCome& has_come) {
    own().bell.wait(
        spin_, [&] { return has_come() || aborted_.load() || other().is_closed.load() != 0; },
        [&] {
          // Asked again after the look: it may have come, and its sender have left, meanwhile.
          if (!has_come() && is_other_gone() && !has_come()) throw_gone();
        });
    if (aborted_.load()) return false;
    if (has_come()) return true;  // asked after `is_closed`: what came before that counts
    throw ConnectionLost("connection closed by the other end");
  }

  RingSide& own() const { return layout_->*own_; }
  RingSide& other() const { return layout_->*other_; }
  RingLayout& layout() const { return *layout_; }
  Segment& segment() const { return *segment_; }
  const std::shared_ptr<Segment>& shared_segment() const { return segment_; }

 private:
  bool is_other_gone() const;
  [[noreturn]] void throw_gone() const;

  std::shared_ptr<Segment> segment_;  // shared: both ends of a ring may be in one process
  RingLayout* layout_;
  RingSide RingLayout::* own_;
  RingSide RingLayout::* other_;
  std::chrono::microseconds spin_;
  std::int32_t pid_;
  std::atomic<bool> aborted_{false};
};

}  // namespace pipert

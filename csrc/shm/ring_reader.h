// RingReader: the end of a ring that receives.
#pragma once

#include <memory>
#include <optional>

#include "shm/ring_end.h"

namespace pipert {

// The segment of a ring that another process has made, without its name from now on. SegmentError
// if it isn't there, is another user's, or holds something else.
std::unique_ptr<Segment> open_ring_segment(const std::string& name,
                                           const std::string& folder = "/dev/shm");

// Used by one thread, save abort(), which any thread may call.
class RingReader {
 public:
  RingReader(std::shared_ptr<Segment> segment, std::chrono::microseconds spin);

  // Waits for the next message and tells its length. Nothing if aborted; ConnectionLost if the
  // writer is gone.
  std::optional<std::size_t> wait_for_message();
  // That message where it lies, if the writer has lent it; else null, and it must be read. It may
  // be changed, and stays until the last pointer to it is gone: on any thread, even after this and
  // both ends. A fork can't look at it.
  std::shared_ptr<char> borrow();
  // Copies that message, while it is still being written, and lets the writer have its room back.
  // False if aborted; ConnectionLost likewise. REQUIRES wait_for_message() before, and room for
  // what it told.
  bool read(char* destination);

  void abort() noexcept { end_.abort(); }

 private:
  // The next piece, which must have been published.
  const RingPiece& next() const { return end_.layout().pieces[num_pieces_ % kNumPieces]; }
  bool has_next() const { return end_.other().num_pieces.load() > num_pieces_; }
  void check(const RingPiece& piece, std::size_t rest) const;
  void finish_piece(bool is_last);

  RingEnd end_;
  std::uint64_t num_pieces_ = 0;
};

}  // namespace pipert

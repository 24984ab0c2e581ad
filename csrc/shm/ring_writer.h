// RingWriter: the end of a ring that sends.
#pragma once

#include <functional>
#include <memory>

#include "shm/block_pool.h"
#include "shm/ring_end.h"

namespace pipert {

// A segment for a new ring, to be opened by the reader's process; see RingReader. SegmentError if
// it can't be had.
std::unique_ptr<Segment> make_ring_segment(const std::string& folder = "/dev/shm");

// Used by one thread at a time, save abort() and wait_until_taken(), which any thread may call.
class RingWriter {
 public:
  // Called while a message is written, with the number of its bytes that are done.
  using Progress = std::function<void(std::size_t)>;
  // Writes a message to an address, and may tell how far it is, if anybody asks: else there is no
  // function to call.
  using Fill = std::function<void(char*, const Progress&)>;

  RingWriter(std::shared_ptr<Segment> segment, std::chrono::microseconds spin);
  // Leaves to the reader what it has, or may still take, and gives the rest back to the system: who
  // keeps a loan keeps the segment.
  ~RingWriter();
  RingWriter(const RingWriter&) = delete;
  RingWriter& operator=(const RingWriter&) = delete;

  // Before the first message of a pass.
  void begin_pass();
  // Writes a message of `num_bytes`, at least 1, into the segment, and lends it to the reader if
  // its block may be. False, and nothing is written, if there is no room for it now. Never waits.
  bool try_write(std::size_t num_bytes, const Fill& fill);
  // Writes one in as many pieces as there is room for, and waits for room. False if aborted;
  // ConnectionLost if the reader is gone.
  bool write_in_pieces(const char* message, std::size_t num_bytes);
  // Waits until the reader has so many messages, of all that were ever written; otherwise likewise.
  bool wait_until_taken(std::uint64_t num_messages);

  void abort() noexcept { end_.abort(); }
  // Of the system's memory that messages take up.
  std::size_t num_bytes() const { return blocks_.num_bytes(); }

 private:
  std::uint64_t num_taken() const { return end_.other().num_pieces.load(); }
  bool has_entry() const { return num_pieces_ - num_taken() < kNumPieces; }
  RingPiece& describe(const BlockPool::Block& block, std::size_t num_bytes,
                      std::size_t message_bytes);
  void write_followed(char* destination, RingPiece& piece, const Fill& fill);
  void write_lent(char* destination, RingPiece& piece, std::uint64_t loan, const Fill& fill);
  void publish();

  RingEnd end_;
  BlockPool blocks_;
  std::uint64_t num_pieces_ = 0;
};

}  // namespace pipert

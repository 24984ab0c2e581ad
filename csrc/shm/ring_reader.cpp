#include "shm/ring_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace pipert {

std::unique_ptr<Segment> open_ring_segment(const std::string& name, const std::string& folder) {
  auto segment = Segment::open(name, sizeof(RingLayout), folder);
  segment->remove_name();
  return segment;
}

RingReader::RingReader(std::shared_ptr<Segment> segment, std::chrono::microseconds spin)
    : end_(std::move(segment), &RingLayout::reader, &RingLayout::writer, spin) {}

std::optional<std::size_t> RingReader::wait_for_message() {
  if (!end_.wait([this] { return has_next(); })) return std::nullopt;
  return next().message_bytes;
}

bool RingReader::read(char* destination) {
  std::size_t rest = next().message_bytes;
  while (rest > 0) {
    if (!end_.wait([this] { return has_next(); })) return false;
    const RingPiece& piece = next();
    check(piece, rest);
    const char* source = end_.segment().data() + piece.offset;
    const std::size_t size = piece.num_bytes;
    for (std::size_t done = 0; done < size;) {
      if (!end_.wait([&] { return piece.num_written.load() > done; })) return false;
      const std::size_t written = std::min<std::size_t>(piece.num_written.load(), size);
      std::memcpy(destination, source + done, written - done);
      destination += written - done;
      done = written;
    }
    rest -= size;
    if (rest == 0) end_.own().num_messages.fetch_add(1);
    end_.own().num_pieces.store(++num_pieces_);
    end_.other().bell.ring();
  }
  return true;
}

// What another process wrote is believed only as far as it can do no harm.
void RingReader::check(const RingPiece& piece, std::size_t rest) const {
  const bool lies_within =
      piece.offset <= Segment::kMaxBytes && piece.num_bytes <= Segment::kMaxBytes - piece.offset;
  if (lies_within && piece.num_bytes > 0 && piece.num_bytes <= rest) return;
  throw ValueError(concat("a channel's shared memory holds a piece of ", piece.num_bytes,
                          " bytes at ", piece.offset, ", at most ", rest, " were expected"));
}

}  // namespace pipert

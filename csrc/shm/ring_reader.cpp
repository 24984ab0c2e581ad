#include "shm/ring_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

// Returns what was lent, when its last pointer is gone.
class Loan {
 public:
  Loan(std::shared_ptr<Segment> segment, std::uint64_t index)
      : segment_(std::move(segment)), index_(index), pid_(getpid()) {}

  void operator()(char* /*data*/) const {
    if (pid_ != getpid()) return;  // a fork has the object, and none of the memory
    auto* layout = reinterpret_cast<RingLayout*>(segment_->data());
    layout->loans[index_].store(0);
    layout->writer.bell.ring();
  }

 private:
  std::shared_ptr<Segment> segment_;  // shared with the ring's ends and the other loans
  std::uint64_t index_;
  std::int32_t pid_;
};

}  // namespace

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

std::shared_ptr<char> RingReader::borrow() {
  const RingPiece& piece = next();
  const std::uint64_t loan = piece.loan;
  if (loan >= kNumLoans || piece.num_bytes != piece.message_bytes) return nullptr;
  check(piece, piece.message_bytes);
  std::shared_ptr<char> lent(end_.segment().data() + piece.offset,
                             Loan(end_.shared_segment(), loan));
  finish_piece(true);
  return lent;
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
    if (piece.loan < kNumLoans) end_.layout().loans[piece.loan].store(0);
    finish_piece(rest == 0);
  }
  return true;
}

void RingReader::finish_piece(bool is_last) {
  if (is_last) end_.own().num_messages.fetch_add(1);
  end_.own().num_pieces.store(++num_pieces_);
  end_.other().bell.ring();
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

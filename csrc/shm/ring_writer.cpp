#include "shm/ring_writer.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace pipert {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kLayoutBytes = (sizeof(RingLayout) + kPage - 1) / kPage * kPage;

}  // namespace

std::unique_ptr<Segment> make_ring_segment(const std::string& folder) {
  auto segment =
      Segment::create(kLayoutBytes + BlockPool::kNumFirst * BlockPool::kFirstBytes, folder);
  new (segment->data()) RingLayout;
  return segment;
}

RingWriter::RingWriter(std::shared_ptr<Segment> segment, std::chrono::microseconds spin)
    : end_(std::move(segment), &RingLayout::writer, &RingLayout::reader, spin),
      blocks_(end_.segment(), kLayoutBytes, end_.layout().loans) {}

RingWriter::~RingWriter() {
  if (end_.is_here()) blocks_.give_back_free(num_taken());
}

void RingWriter::begin_pass() { blocks_.begin_pass(num_taken()); }

bool RingWriter::try_write(std::size_t num_bytes, const Fill& fill) {
  if (!has_entry()) return false;
  BlockPool::Block* block = blocks_.take(num_bytes, num_taken());
  if (block == nullptr) return false;
  block->free_at = num_pieces_ + 1;
  RingPiece& piece = describe(*block, num_bytes, num_bytes);
  char* const destination = end_.segment().data() + block->offset;
  // A small message would keep a large block from large ones.
  const bool is_worth_it = num_bytes > BlockPool::kFirstBytes && num_bytes >= block->num_bytes / 2;
  if (block->loan != kNoLoan && is_worth_it) {
    write_lent(destination, piece, block->loan, fill);
  } else {
    write_followed(destination, piece, fill);
  }
  return true;
}

void RingWriter::write_lent(char* destination, RingPiece& piece, std::uint64_t loan,
                            const Fill& fill) {
  fill(destination, {});
  end_.layout().loans[loan].store(1);
  piece.loan = loan;
  piece.num_written.store(piece.num_bytes);
  publish();
}

void RingWriter::write_followed(char* destination, RingPiece& piece, const Fill& fill) {
  bool is_published = false;
  fill(destination, [&](std::size_t num_written) {
    piece.num_written.store(num_written);
    if (std::exchange(is_published, true)) {
      end_.other().bell.ring();
    } else {
      publish();
    }
  });
  piece.num_written.store(piece.num_bytes);
  if (is_published) {
    end_.other().bell.ring();
  } else {
    publish();
  }
}

bool RingWriter::write_in_pieces(const char* message, std::size_t num_bytes) {
  for (std::size_t done = 0; done < num_bytes;) {
    const bool has_room =
        end_.wait([this] { return has_entry() && blocks_.has_free(num_taken()); });
    if (!has_room) return false;
    BlockPool::Block* block = blocks_.take_largest(num_taken());
    const std::size_t step = std::min(num_bytes - done, block->num_bytes);
    block->free_at = num_pieces_ + 1;
    RingPiece& piece = describe(*block, step, num_bytes);
    std::memcpy(end_.segment().data() + block->offset, message + done, step);
    piece.num_written.store(step);
    publish();
    done += step;
  }
  return true;
}

bool RingWriter::wait_until_taken(std::uint64_t num_messages) {
  return end_.wait([&] { return end_.other().num_messages.load() >= num_messages; });
}

RingPiece& RingWriter::describe(const BlockPool::Block& block, std::size_t num_bytes,
                                std::size_t message_bytes) {
  RingPiece& piece = end_.layout().pieces[num_pieces_ % kNumPieces];
  piece.offset = block.offset;
  piece.num_bytes = num_bytes;
  piece.message_bytes = message_bytes;
  piece.loan = kNoLoan;
  piece.num_written.store(0);
  return piece;
}

void RingWriter::publish() {
  end_.own().num_pieces.store(++num_pieces_);
  end_.other().bell.ring();
}

}  // namespace pipert

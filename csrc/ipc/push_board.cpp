#include "ipc/push_board.h"

#include <new>

#include "base/error.h"

namespace pipert {

std::size_t push_board_bytes() {
  constexpr std::size_t kPage = 4096;
  return (sizeof(PushBoard) + kPage - 1) / kPage * kPage;
}

std::unique_ptr<Segment> make_push_segment(const std::string& folder, std::uint32_t first_number) {
  auto segment = Segment::create(push_board_bytes(), folder);
  auto* board = new (segment->data()) PushBoard;
  board->first_number = first_number;
  for (PushWord& word : board->arrived) word.number.store(first_number);
  board->freed.number.store(first_number);
  return segment;
}

std::unique_ptr<Segment> open_push_segment(const std::string& name, const std::string& folder) {
  auto segment = Segment::open(name, push_board_bytes(), folder);
  segment->remove_name();
  return segment;
}

PushBoard& push_board(const Segment& segment) {
  auto& board = *reinterpret_cast<PushBoard*>(segment.data());
  if (board.magic != kPushBoardMagic || board.num_bytes != sizeof(PushBoard)) {
    throw SegmentError(
        concat("the shared memory ", segment.name(), " holds no edge of GPUs of this version"));
  }
  return board;
}

}  // namespace pipert

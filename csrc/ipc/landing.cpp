#include "ipc/landing.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

constexpr std::uint32_t kFirstSlots = 4;
constexpr std::size_t kFirstBytes = std::size_t{64} << 10;
constexpr std::size_t kLargeBytes = std::size_t{2} << 20;  // from here on no power of two
constexpr std::chrono::seconds kPatience{10};              // with copies, at the end

// With some room, so that messages that grow slowly don't ask each time.
std::size_t round_up(std::size_t num_bytes) {
  if (num_bytes <= kLargeBytes) return std::bit_ceil(num_bytes);
  return (num_bytes + kLargeBytes - 1) / kLargeBytes * kLargeBytes;
}

}  // namespace

struct Landing::Closing {
  std::shared_ptr<Segment> segment;
  std::deque<Area> areas;

  bool is_over() const {
    const PushBoard& board = push_board(*segment);
    if (board.pusher.is_open.load() == 0) return true;
    return board.num_closed.load() == kEverything || !is_running(board.pusher.process);
  }
};

void Landing::sweep(std::unique_ptr<Closing> closing) {
  static std::mutex mutex;
  // Never destroyed: at the end of the process the driver goes first.
  static auto& all = *new std::vector<std::unique_ptr<Closing>>;
  const std::lock_guard lock(mutex);
  if (closing != nullptr) all.push_back(std::move(closing));
  std::erase_if(all, [](const auto& one) { return one->is_over(); });
}

Landing::Landing(std::shared_ptr<Segment> segment)
    : segment_(std::move(segment)),
      board_(push_board(*segment_)),
      words_(std::make_unique<RegisteredMemory>(segment_->data(), push_board_bytes())),
      waits_(board_.arrived, board_.first_number, board_.landing, board_.pusher) {
  sweep(nullptr);
  grow(kFirstSlots, kFirstBytes);
}

Landing::~Landing() {
  waits_.leave_undone();  // messages that nobody took
  const auto end = std::chrono::steady_clock::now() + kPatience;
  try {
    while (!cuda::is_done(taken_.get())) {
      if (std::chrono::steady_clock::now() > end) abort();
      if (std::chrono::steady_clock::now() > end + kPatience) break;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  } catch (const CudaError&) {  // the context is gone
  }
  words_.reset();
  auto closing = std::make_unique<Closing>();
  closing->segment = segment_;
  closing->areas = std::move(areas_);
  sweep(std::move(closing));
}

void Landing::grow(std::uint32_t num_slots, std::size_t slot_bytes) {
  if (!areas_.empty()) {
    const Area& last = areas_.back();
    if (num_slots <= last.num_slots && slot_bytes <= last.slot_bytes) return;
    // At least twice as many, or as large, so that there can't be many grants.
    num_slots = std::max(std::bit_ceil(num_slots), last.num_slots);
    slot_bytes = slot_bytes > last.slot_bytes
                     ? std::max(round_up(slot_bytes), last.slot_bytes + last.slot_bytes / 4)
                     : last.slot_bytes;
  }
  const std::uint32_t grant = board_.num_grants.load();
  if (grant == kMaxGrants) return;  // what doesn't fit goes on by way of the host
  Area area{DeviceMemory(num_slots * slot_bytes), grant, slot_bytes, num_slots};
  board_.grants[grant] = {area.memory.handle(), slot_bytes, num_slots};
  areas_.push_back(std::move(area));
  board_.num_grants.store(grant + 1);
}

void Landing::free_closed() {
  const std::uint32_t num_closed = board_.num_closed.load();
  while (areas_.size() > 1 && areas_.front().grant < num_closed) areas_.pop_front();
}

const Landing::Area& Landing::area_of(const Pushed& pushed, const std::vector<Part>& parts) const {
  std::size_t num_bytes = 0;
  for (const Part& part : parts) num_bytes = align_part(num_bytes) + part.num_bytes;
  for (const Area& area : areas_) {
    if (area.grant != pushed.grant) continue;
    if (pushed.slot >= area.num_slots || num_bytes > area.slot_bytes) break;
    return area;
  }
  throw ValueError(concat("push ", pushed.number, " of ", num_bytes, " bytes came into slot ",
                          pushed.slot, " of grant ", pushed.grant,
                          ", where there is no such room: expected one that was granted"));
}

bool Landing::take(const Pushed& pushed, const std::vector<Part>& parts, cuda::Stream stream) {
  if (!waits_.has_ended()) free_closed();
  const Area& area = area_of(pushed, parts);
  if (pushed.stream >= kMaxPushStreams)
    throw ValueError(concat("a push came by stream ", pushed.stream, " of ", kMaxPushStreams));
  auto& arrived = board_.arrived[pushed.stream].number;
  waits_.expect(pushed.number);
  const bool is_here = has_reached(arrived.load(), pushed.number);
  if (waits_.has_ended()) return false;  // asked after expect(): else it ends this one too
  if (!is_here) cuda::wait_value(stream, words_->on_device(arrived), pushed.number);
  const char* const source = area.memory.data() + pushed.slot * area.slot_bytes;
  std::size_t offset = 0;
  for (const Part& part : parts) {
    offset = align_part(offset);
    cuda::copy_on_device(part.data, source + offset, part.num_bytes, stream);
    offset += part.num_bytes;
  }
  cuda::write_value(stream, words_->on_device(board_.freed.number), pushed.number);
  cuda::record(taken_.get(), stream);
  return true;
}

}  // namespace pipert

#include "ipc/pusher.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"

namespace pipert {
namespace {

constexpr std::chrono::seconds kPatience{10};  // with a receiver that lives, at the end
constexpr std::chrono::seconds kLastPatience{5};

std::size_t bytes_of(const std::vector<Pusher::Part>& parts) {
  std::size_t end = 0;
  for (const Pusher::Part& part : parts) end = align_part(end) + part.num_bytes;
  return end;
}

}  // namespace

Pusher::Pusher(std::shared_ptr<Segment> segment, std::uint32_t num_streams)
    : segment_(std::move(segment)),
      board_(push_board(*segment_)),
      words_(segment_->data(), push_board_bytes()),
      number_(board_.first_number),
      waits_({&board_.freed, 1}, board_.first_number, board_.pusher, board_.landing) {
  if (num_streams < 1 || num_streams > kMaxPushStreams) {
    throw ValueError(
        concat("expected 1 to ", kMaxPushStreams, " streams that push, got ", num_streams));
  }
  for (std::uint32_t i = 0; i < num_streams; ++i) streams_.emplace_back();
}

Pusher::~Pusher() {
  if (!drain(kPatience)) {
    abort();
    if (!drain(kLastPatience)) waits_.leave_undone();
  }
  target_.reset();
  retired_.clear();
  board_.num_closed.store(kEverything);
}

bool Pusher::drain(std::chrono::milliseconds patience) const noexcept {
  using std::chrono::milliseconds;
  const auto end = std::chrono::steady_clock::now() + patience;
  for (const CudaStream& stream : streams_) {
    const auto left =
        std::chrono::duration_cast<milliseconds>(end - std::chrono::steady_clock::now());
    if (!stream.drain(std::max(left, milliseconds{0}))) return false;
  }
  return true;
}

void Pusher::open_granted() {
  const std::uint32_t num_grants = board_.num_grants.load();
  if (num_grants > 0 && (!target_.has_value() || target_->grant != num_grants - 1)) {
    const Grant& grant = board_.grants[num_grants - 1];
    Target target{ImportedMemory(grant.handle),
                  num_grants - 1,
                  grant.slot_bytes,
                  grant.num_slots,
                  {},
                  number_};
    if (target_.has_value()) retired_.push_back(std::move(*target_));
    target_ = std::move(target);
  }
  note_freed();
}

void Pusher::note_freed() {
  if (!target_.has_value()) return;
  const std::uint32_t freed = board_.freed.number.load();
  if (waits_.has_ended()) return;  // the word tells nothing any more; the destructor closes all
  // A slot that is used again after 2^31 pushes must not be compared with the number of its last.
  std::erase_if(target_->last, [&](const auto& entry) { return has_reached(freed, entry.second); });
  if (retired_.empty()) return;
  while (!retired_.empty() && has_reached(freed, retired_.front().last_number))
    retired_.pop_front();
  if (retired_.empty()) board_.num_closed.store(target_->grant);
}

bool Pusher::await_free(std::uint32_t slot, cuda::Stream stream) {
  const auto last = target_->last.find(slot);
  if (last == target_->last.end()) return true;
  waits_.expect(last->second);
  const bool is_free = has_reached(board_.freed.number.load(), last->second);
  if (waits_.has_ended()) return false;  // asked after expect(): else it ends this one too
  if (!is_free) cuda::wait_value(stream, words_.on_device(board_.freed.number), last->second);
  return true;
}

std::optional<Pushed> Pusher::push(std::uint32_t slot, const std::vector<Part>& parts,
                                   cuda::Stream producer) {
  open_granted();
  if (!target_.has_value() || slot >= target_->num_slots || bytes_of(parts) > target_->slot_bytes)
    return std::nullopt;
  const std::uint32_t turn = (last_stream_ + 1) % num_streams();
  const cuda::Stream stream = streams_[turn].get();
  if (!await_free(slot, stream)) return std::nullopt;
  cuda::record(produced_.get(), producer);
  cuda::wait(stream, produced_.get());
  char* const destination = target_->memory.data() + slot * target_->slot_bytes;
  std::size_t offset = 0;
  for (const Part& part : parts) {
    offset = align_part(offset);
    cuda::copy_on_device(destination + offset, part.data, part.num_bytes, stream);
    offset += part.num_bytes;
  }
  ++number_;
  last_stream_ = turn;
  target_->last[slot] = target_->last_number = number_;
  cuda::write_value(stream, words_.on_device(board_.arrived[turn].number), number_);
  return Pushed{target_->grant, number_, slot, turn};
}

}  // namespace pipert

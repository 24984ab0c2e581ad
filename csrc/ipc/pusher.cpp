#include "ipc/pusher.h"

#include <chrono>
#include <utility>

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

Pusher::Pusher(std::shared_ptr<Segment> segment)
    : segment_(std::move(segment)),
      board_(push_board(*segment_)),
      words_(segment_->data(), push_board_bytes()),
      number_(board_.first_number),
      waits_(board_.freed, board_.first_number, board_.pusher, board_.landing) {}

Pusher::~Pusher() {
  if (!stream_.drain(kPatience)) {
    abort();
    if (!stream_.drain(kLastPatience)) waits_.leave_undone();
  }
  target_.reset();
  retired_.clear();
  board_.num_closed.store(kEverything);
}

void Pusher::open_granted() {
  const std::uint32_t num_grants = board_.num_grants.load();
  if (num_grants == 0 || (target_.has_value() && target_->grant == num_grants - 1)) return;
  const Grant& grant = board_.grants[num_grants - 1];
  Target target{
      ImportedMemory(grant.handle), num_grants - 1, grant.slot_bytes, grant.num_slots, {}, number_};
  if (target_.has_value()) retired_.push_back(std::move(*target_));
  target_ = std::move(target);
}

void Pusher::close_retired() {
  if (waits_.has_ended()) return;  // the words tell nothing any more; the destructor closes them
  while (!retired_.empty() && has_reached(board_.freed.load(), retired_.front().last_number))
    retired_.pop_front();
  if (retired_.empty() && target_.has_value()) board_.num_closed.store(target_->grant);
}

std::optional<Pushed> Pusher::push(std::uint32_t slot, const std::vector<Part>& parts,
                                   cuda::Stream producer) {
  open_granted();
  close_retired();
  if (!target_.has_value() || slot >= target_->num_slots || bytes_of(parts) > target_->slot_bytes)
    return std::nullopt;
  cuda::record(produced_.get(), producer);
  cuda::wait(stream_.get(), produced_.get());
  if (const auto last = target_->last.find(slot); last != target_->last.end()) {
    waits_.expect(last->second);
    if (waits_.has_ended()) return std::nullopt;  // asked after expect(): else it ends this one too
    cuda::wait_value(stream_.get(), words_.on_device(board_.freed), last->second);
  }
  char* const destination = target_->memory.data() + slot * target_->slot_bytes;
  std::size_t offset = 0;
  for (const Part& part : parts) {
    offset = align_part(offset);
    cuda::copy_on_device(destination + offset, part.data, part.num_bytes, stream_.get());
    offset += part.num_bytes;
  }
  ++number_;
  target_->last[slot] = target_->last_number = number_;
  cuda::write_value(stream_.get(), words_.on_device(board_.arrived), number_);
  return Pushed{target_->grant, number_, slot};
}

}  // namespace pipert

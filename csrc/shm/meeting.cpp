#include "shm/meeting.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "shm/connection_lost.h"
#include "shm/doorbell.h"
#include "shm/process_id.h"

namespace pipert {

// Written by its rank alone, save the bell, which the others ring.
struct Meeting::Seat {
  alignas(64) std::atomic<std::uint64_t> num_met{0};  // meetings that the rank has come to
  std::array<std::uint64_t, 2> num_values{};          // of the last one and the one before
  alignas(64) Doorbell bell;
  std::atomic<std::uint32_t> is_open{0};  // 1 from when `process` is written
  std::atomic<std::uint32_t> is_closed{0};
  ProcessId process;
  alignas(64) std::atomic<int> core{-1};
};

// Seats follow, then the values of each.
struct Meeting::Layout {
  std::uint64_t magic = 0x70697065'6d656574;
  std::uint64_t seat_bytes = sizeof(Seat);  // another number in another version
  std::int64_t num_ranks = 0;
  std::int64_t max_values = 0;
};

namespace {

constexpr std::size_t kSeats = 64;  // where they begin

}  // namespace

std::unique_ptr<Segment> make_meeting_segment(int num_ranks, int max_values,
                                              const std::string& folder) {
  static_assert(sizeof(Meeting::Layout) <= kSeats);
  const std::size_t seats = as_index(num_ranks) * sizeof(Meeting::Seat);
  const std::size_t values = as_index(num_ranks) * 2 * as_index(max_values) * sizeof(double);
  auto segment = Segment::create(kSeats + seats + values, folder);
  auto* layout = new (segment->data()) Meeting::Layout;
  layout->num_ranks = num_ranks;
  layout->max_values = max_values;
  for (std::size_t i = 0; i < as_index(num_ranks); ++i)
    new (segment->data() + kSeats + i * sizeof(Meeting::Seat)) Meeting::Seat;
  return segment;
}

std::unique_ptr<Segment> open_meeting_segment(const std::string& name, const std::string& folder) {
  return Segment::open(name, kSeats + sizeof(Meeting::Seat), folder);
}

Meeting::Meeting(std::shared_ptr<Segment> segment, int rank, int num_ranks, int max_values,
                 std::chrono::microseconds spin)
    : segment_(std::move(segment)),
      rank_(rank),
      num_ranks_(num_ranks),
      max_values_(max_values),
      spin_(spin),
      pid_(getpid()) {
  const auto* layout = reinterpret_cast<const Layout*>(segment_->data());
  const Layout expected;
  if (layout->magic != expected.magic || layout->seat_bytes != expected.seat_bytes ||
      layout->num_ranks != num_ranks || layout->max_values != max_values) {
    throw SegmentError(concat("the shared memory ", segment_->name(), " is no meeting of ",
                              num_ranks, " ranks of this version"));
  }
  if (seat(rank).is_open.load() != 0)
    throw SegmentError(concat("the shared memory ", segment_->name(), " is in use"));
  seat(rank).process = this_process();
  seat(rank).is_open.store(1);
}

Meeting::~Meeting() {
  if (pid_ == getpid()) abort();
}

bool Meeting::meet(std::vector<double>& values) {
  if (values.size() > as_index(max_values_)) {
    throw InternalError(concat("a meeting takes ", max_values_, " values, got ", values.size()));
  }
  const std::uint64_t number = ++number_;
  std::copy(values.begin(), values.end(), values_of(rank_, number));
  seat(rank_).num_values[number % 2] = values.size();
  seat(rank_).num_met.store(number);
  ring_all();
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (rank != rank_ && !wait_for(rank, number)) return false;
  }
  if (values.empty()) take_values(number, values);
  return true;
}

bool Meeting::wait_for(int rank, std::uint64_t number) {
  awaited_rank_.store(rank, std::memory_order_relaxed);
  const auto has_come = [&] { return seat(rank).num_met.load() >= number; };
  seat(rank_).bell.wait(
      spin_, [&] { return has_come() || aborted_.load() || seat(rank).is_closed.load() != 0; },
      [&] { look_around(number); });
  if (aborted_.load()) return false;
  if (has_come()) return true;  // asked after `is_closed`: who came before that counts
  throw ConnectionLost(concat("connection closed by rank ", rank));
}

// Whoever is gone may not be the one that this rank waits for first.
void Meeting::look_around(std::uint64_t number) {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    const Seat& other = seat(rank);
    if (other.num_met.load() >= number || other.is_open.load() == 0) continue;
    const bool is_gone = !is_running(other.process) && other.num_met.load() < number;
    if (!is_gone && other.is_closed.load() == 0) continue;
    awaited_rank_.store(rank, std::memory_order_relaxed);
    if (is_gone) {
      throw ProcessGone(
          concat("connection closed: process ", other.process.pid, " of rank ", rank, " is gone"));
    }
    if (other.num_met.load() < number)
      throw ConnectionLost(concat("connection closed by rank ", rank));
  }
}

// The places of a meeting are written again only when its rank comes to the next but one: all have
// read them by then, for all must come to the next one first.
void Meeting::take_values(std::uint64_t number, std::vector<double>& values) const {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    const std::uint64_t count = seat(rank).num_values[number % 2];
    if (count == 0) continue;
    const double* first = values_of(rank, number);
    values.assign(first, first + std::min<std::uint64_t>(count, as_index(max_values_)));
    return;
  }
}

void Meeting::abort() noexcept {
  aborted_.store(true);
  seat(rank_).is_closed.store(1);
  ring_all();
}

std::vector<std::shared_ptr<std::atomic<int>>> Meeting::cores() const {
  std::vector<std::shared_ptr<std::atomic<int>>> cores;
  for (int rank = 0; rank < num_ranks_; ++rank) cores.emplace_back(segment_, &seat(rank).core);
  return cores;
}

void Meeting::ring_all() noexcept {
  for (int rank = 0; rank < num_ranks_; ++rank) seat(rank).bell.ring();
}

Meeting::Seat& Meeting::seat(int rank) const {
  return *reinterpret_cast<Seat*>(segment_->data() + kSeats + as_index(rank) * sizeof(Seat));
}

double* Meeting::values_of(int rank, std::uint64_t number) const {
  auto* first =
      reinterpret_cast<double*>(segment_->data() + kSeats + as_index(num_ranks_) * sizeof(Seat));
  return first + (2 * as_index(rank) + number % 2) * as_index(max_values_);
}

}  // namespace pipert

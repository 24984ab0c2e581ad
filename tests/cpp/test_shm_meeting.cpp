// Meetings: nobody leaves before all have come, values reach all, and whoever is gone is named.
#include "shm/meeting.h"

#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "shared_folder.h"
#include "shm/connection_lost.h"

namespace pipert {
namespace {

constexpr std::chrono::microseconds kSpin{50};
constexpr int kNumRanks = 3;
constexpr int kMaxValues = 5;

struct Room {
  SharedFolder folder;
  std::shared_ptr<Segment> segment = make_meeting_segment(kNumRanks, kMaxValues, folder.path());

  Room() { segment->remove_name(); }
  Meeting seat(int rank) { return {segment, rank, kNumRanks, kMaxValues, kSpin}; }
};

// What the speaker of a meeting brings.
std::vector<double> values_of(int meeting) {
  return {static_cast<double>(meeting), 0.5 * meeting, static_cast<double>(-meeting)};
}

void test_all_hear_the_values_of_the_one_that_has_any() {
  Room room;
  std::atomic<int> num_come{0};
  const auto attend = [&](int rank) {
    Meeting meeting = room.seat(rank);
    for (int i = 0; i < 300; ++i) {
      const bool speaks = rank == i % kNumRanks && i % 7 != 0;
      std::vector<double> values = speaks ? values_of(i) : std::vector<double>();
      num_come.fetch_add(1);
      CHECK(meeting.meet(values));
      CHECK(num_come.load() >= kNumRanks * (i + 1));  // nobody left before all had come
      CHECK(values == (i % 7 != 0 ? values_of(i) : std::vector<double>()));
      if (i % 50 == rank) std::this_thread::sleep_for(3 * kSpin);  // the others sleep by then
    }
  };
  std::thread one([&] { attend(1); });
  std::thread two([&] { attend(2); });
  attend(0);
  one.join();
  two.join();
}

void test_abort_ends_the_wait_and_the_others_learn_who_left() {
  Room room;
  Meeting first = room.seat(0);
  Meeting second = room.seat(1);
  std::thread waiting([&] {
    std::vector<double> values;
    CHECK(!first.meet(values));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  first.abort();
  waiting.join();
  Meeting third = room.seat(2);
  std::vector<double> values;
  std::thread other([&] {
    std::vector<double> none;
    CHECK_THROWS(second.meet(none), ConnectionLost);  // rank 0 came, rank 2 leaves
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  third.abort();
  other.join();
  CHECK(second.awaited_rank() == 2);
}

void test_death_is_told_within_a_second_whoever_is_awaited() {
  const SharedFolder folder;
  const std::shared_ptr<Segment> segment =
      make_meeting_segment(kNumRanks, kMaxValues, folder.path());
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    Meeting meeting(open_meeting_segment(segment->name(), folder.path()), 2, kNumRanks, kMaxValues,
                    kSpin);
    std::vector<double> values;
    CHECK(meeting.meet(values));
    kill(getpid(), SIGKILL);
  }
  Meeting first(segment, 0, kNumRanks, kMaxValues, kSpin);
  Meeting second(segment, 1, kNumRanks, kMaxValues, kSpin);
  std::thread other([&] {
    std::vector<double> values;
    CHECK(second.meet(values));
  });
  std::vector<double> values;
  CHECK(first.meet(values));
  other.join();
  segment->remove_name();
  const auto start = std::chrono::steady_clock::now();
  try {  // rank 1 is alive and doesn't come
    CHECK(first.meet(values) && false);
  } catch (const ConnectionLost& lost) {
    CHECK(std::string(lost.what()).find("of rank 2 is gone") != std::string::npos);
  }
  CHECK(first.awaited_rank() == 2);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(1));
  CHECK(waitpid(child, nullptr, 0) == child);
}

void test_all_see_the_core_that_a_rank_notes() {
  Room room;
  const Meeting first = room.seat(0);
  const Meeting last = room.seat(2);
  const auto seen = last.cores();
  CHECK(seen.size() == kNumRanks);
  for (const auto& core : seen) CHECK(core->load() == -1);
  first.cores()[0]->store(3);
  CHECK(seen[0]->load() == 3);
  CHECK(seen[1]->load() == -1 && seen[2]->load() == -1);
}

void test_segment_for_others_and_taken_seats_are_refused() {
  Room room;
  CHECK_THROWS(Meeting(room.segment, 0, kNumRanks + 1, kMaxValues, kSpin), SegmentError);
  CHECK_THROWS(Meeting(room.segment, 0, kNumRanks, kMaxValues + 1, kSpin), SegmentError);
  const Meeting taken = room.seat(1);
  CHECK_THROWS(room.seat(1), SegmentError);
  Meeting first = room.seat(0);
  std::vector<double> many(kMaxValues + 1);
  CHECK_THROWS(first.meet(many), InternalError);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  test_death_is_told_within_a_second_whoever_is_awaited();  // forks: no thread has run yet
  test_all_hear_the_values_of_the_one_that_has_any();
  test_abort_ends_the_wait_and_the_others_learn_who_left();
  test_all_see_the_core_that_a_rank_notes();
  test_segment_for_others_and_taken_seats_are_refused();
}

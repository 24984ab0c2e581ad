// The runtime floor's TraceRing, which is free of torch: the last passes that ended well.

#include "check.h"
#include "runtime/trace.h"

namespace pipert {
namespace {

void run_pass(TraceRing& ring, std::int64_t number) {
  ring.begin(number % 2 == 0, number);
  ring.current()->events[0] = {number, number, number, 0};
  ring.current()->num_events = 1;
  ring.end(number + 1);
}

void test_a_ring_keeps_the_last_passes_newest_first() {
  TraceRing ring(3, 4);
  CHECK(ring.num_passes() == 0);
  CHECK(ring.current() == nullptr);
  for (std::int64_t pass = 1; pass <= 7; ++pass) {
    run_pass(ring, pass);
    CHECK(ring.num_passes() == static_cast<int>(pass < 3 ? pass : 3));
    for (int ago = 0; ago < ring.num_passes(); ++ago) {
      CHECK(ring.last(ago).begun_ns == pass - ago);
      CHECK(ring.last(ago).events[0].issued_ns == pass - ago);
      CHECK(ring.last(ago).training == ((pass - ago) % 2 == 0));
    }
  }
}

void test_a_pass_that_failed_is_not_kept_and_takes_one_place_at_most() {
  TraceRing ring(2, 1);
  run_pass(ring, 1);
  run_pass(ring, 2);
  ring.begin(true, 3);
  CHECK(ring.num_passes() == 1);
  CHECK(ring.last().begun_ns == 2);
  ring.begin(true, 4);
  CHECK(ring.current()->num_events == 0);
  CHECK(ring.num_passes() == 1);
  ring.end(5);
  CHECK(ring.num_passes() == 2);
  CHECK(ring.last().begun_ns == 4);
  CHECK(ring.last(1).begun_ns == 2);
}

void test_memory_is_taken_when_it_is_made() {
  TraceRing ring(1, 100);
  ring.begin(true, 1);
  const TraceEvent* events = ring.current()->events.data();
  CHECK(ring.current()->events.size() == 100);
  ring.end(2);
  run_pass(ring, 3);
  CHECK(ring.current()->events.data() == events);
}

void test_without_passes_nothing_is_traced() {
  TraceRing ring(0, 100);
  ring.begin(true, 1);
  CHECK(ring.current() == nullptr);
  ring.end(2);
  CHECK(ring.num_passes() == 0);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::test_a_ring_keeps_the_last_passes_newest_first();
  pipert::test_a_pass_that_failed_is_not_kept_and_takes_one_place_at_most();
  pipert::test_memory_is_taken_when_it_is_made();
  pipert::test_without_passes_nothing_is_traced();
  return 0;
}

// The probe of benchmarks/gpu_channels.py, with the fake of CUDA: what it times comes to an end.
#include "transport/push_probe.h"

#include <unistd.h>

#include "base/error.h"
#include "check.h"
#include "cuda/cuda_api.h"
#include "cuda_fake.h"

namespace pipert {
namespace {

constexpr int kCount = 10;

// As the benchmark asks: the destination first, and nothing while the other one still works.
void test_every_time_is_told_for_sizes_that_rise_and_fall(std::uint32_t num_streams) {
  const auto source = make_push_probe(num_streams);
  const auto destination = open_push_probe(source->name());
  const auto expect = [&](const PushProbe::Timed& timed) {
    destination->finish();
    CHECK(timed.seconds > 0 && timed.issue_seconds > 0);
  };
  for (const std::size_t num_bytes : {64UL << 10, 4096UL, 1UL << 20, 3UL << 20, 16UL}) {
    destination->prepare(num_bytes);
    source->prepare(num_bytes);
    for (int round = 0; round < 2; ++round) {
      for (const bool copies_out : {false, true}) {
        destination->answer_pushes(kCount, copies_out);
        expect(source->time_pushes(kCount));
      }
      for (const std::size_t copied : {std::size_t{0}, num_bytes}) {
        destination->answer_hops(kCount, copied);
        expect(source->time_hops(kCount, copied));
      }
      expect(source->time_bare_pushes(kCount));
      expect(source->time_copies(kCount, 4));
      expect(source->time_copies(kCount, 1));
    }
  }
}

void test_each_end_does_its_own_part_alone() {
  const auto source = make_push_probe(1);
  const auto destination = open_push_probe(source->name());
  CHECK_THROWS(source->answer_pushes(1, false), ValueError);
  CHECK_THROWS(source->answer_hops(1, 0), ValueError);
  CHECK_THROWS(destination->time_pushes(1), ValueError);
  CHECK_THROWS(destination->time_bare_pushes(1), ValueError);
  CHECK_THROWS(destination->time_copies(1, 1), ValueError);
  CHECK_THROWS(destination->time_hops(1, 0), ValueError);
  CHECK_THROWS(open_push_probe("one"), ValueError);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  alarm(60);  // nothing here may hang
  cuda_fake::set_delays(7, 50);
  for (std::uint32_t num_streams = 1; num_streams <= 4; ++num_streams)
    test_every_time_is_told_for_sizes_that_rise_and_fall(num_streams);
  test_each_end_does_its_own_part_alone();
  CHECK(cuda_fake::num_lost_waits() == 0);
  CHECK(cuda_fake::num_imports() == 0);
}

// Whole passes on lanes that run late, with the fake of CUDA: thousands of them, under any
// schedule, on one and on two devices, some of which fail, all to the plain loop's bits; and each
// wait, mark and adoption that is left out is a wrong result.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>

#include "hash_pipeline.h"

// Behind torch's headers: they have a CHECK of their own.
#include "base/error.h"
#include "check.h"
#include "random_programs.h"
#include "schedule/registry.h"
#include "search/random.h"

namespace pipert {
namespace {

constexpr int kPasses = 3000;
constexpr std::chrono::seconds kPatience{50};  // on a machine that is busy fewer must do
constexpr int kPassesEach = 12;                // of one pipeline
constexpr int kMaxDelayUs = 60;

Schedule schedule_of_catalogue(Random& random) {
  ScheduleRequest request;
  request.num_ranks = 1 + random.below(4);
  request.num_microbatches = 1 + random.below(8);
  Schedule schedule = build_schedule(random.pick(schedule_names()), request);
  if (random.below(4) == 0) schedule = with_offload(schedule, {.ahead = random.below(2)});
  return schedule;
}

// ValueError where the runtime doesn't take what it has drawn.
std::unique_ptr<HashPipeline> random_pipeline(Random& random) {
  const Schedule schedule =
      random.below(3) == 0 ? RandomSchedule(random).make() : schedule_of_catalogue(random);
  LowerOptions lowering{.receive_slots = 1 + random.below(2)};
  if (random.below(2) == 0) lowering.send_slots = 1 + random.below(2);
  lowering.joint_pairs = random.below(2) == 0;
  HashPipelineOptions options;
  options.default_streams = random.below(2) == 0;
  options.device_times = random.below(8) == 0;
  for (int rank = 0; rank < schedule.placement.num_ranks(); ++rank)
    options.devices.push_back(random.below(3) == 0 ? 1 : 0);
  return std::make_unique<HashPipeline>(lower_for_hashes(schedule, lowering), options);
}

void test_passes_equal_the_plain_loop_however_late_lanes_are() {
  Random random(20);
  int num_passes = 0;
  int num_pipelines = 0;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (num_passes < kPasses && std::chrono::steady_clock::now() < end) {
    cuda_fake::set_delays(static_cast<unsigned>(num_pipelines), random.below(2) * kMaxDelayUs);
    std::unique_ptr<HashPipeline> pipeline;
    try {
      pipeline = random_pipeline(random);
    } catch (const ValueError&) {
      continue;
    }
    ++num_pipelines;
    for (int i = 0; i < kPassesEach; ++i, ++num_passes) {
      switch (random.below(12)) {
        case 0:
          pipeline->run_failing(random.pick(pipeline->actions()));
          break;
        case 1:
          pipeline->run_interrupted(std::chrono::microseconds(random.below(1000)));
          break;
        case 2:
          pipeline->run(false);
          break;
        default:
          pipeline->run(true);
      }
    }
    CHECK(pipeline->num_wrong() == 0);
  }
  CHECK(cuda_fake::num_lost_waits() == 0);
  CHECK(num_passes >= kPasses / 10);
  std::printf("%d passes of %d pipelines\n", num_passes, num_pipelines);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  alarm(110);  // nothing here may hang
  test_passes_equal_the_plain_loop_however_late_lanes_are();
}

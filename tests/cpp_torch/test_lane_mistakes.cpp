// Each wait that Executor and LocalChannel make, each mark behind which something waits and each
// adoption is needed: a pipeline without it computes wrong results, and the fake of CUDA shows
// them. So a change that loses one of them fails test_executor_lanes.
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hash_pipeline.h"

// Behind torch's headers: they have a CHECK of their own.
#include "check.h"
#include "schedule/offload.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr int kMaxPasses = 1000;  // until a mistake must have shown
constexpr int kPassesEach = 8;

enum class Role { kCaller, kCompute, kTransfer };

Role role_of(cuda::Stream stream) {
  if (HashPipeline::is_of_caller(stream)) return Role::kCaller;
  return cuda_fake::priority_of(stream) == cuda::StreamPriority::kLowest ? Role::kCompute
                                                                         : Role::kTransfer;
}

cuda_fake::Plant no_wait(Role waiter, Role recorded_on) {
  cuda_fake::Plant plant;
  plant.leaves_out_wait = [=](cuda::Stream at, cuda::Stream of) {
    return role_of(at) == waiter && role_of(of) == recorded_on;
  };
  return plant;
}

cuda_fake::Plant early_mark(Role role, int num_early = 1) {
  cuda_fake::Plant plant;
  plant.records_early = [=](cuda::Stream stream) {
    return role_of(stream) == role ? num_early : 0;
  };
  return plant;
}

cuda_fake::Plant no_adoption(Role role) {
  cuda_fake::Plant plant;
  plant.leaves_out_adoption = [=](cuda::Stream stream) { return role_of(stream) == role; };
  return plant;
}

// On which a mistake shows.
struct Setting {
  std::string schedule;
  int num_ranks = 1;
  bool offloads = false;
  bool two_devices = false;
  bool fails = false;  // every other pass does, and the mistake is made there alone
};

std::unique_ptr<HashPipeline> make_pipeline(const Setting& setting, int number) {
  ScheduleRequest request;
  request.num_ranks = setting.num_ranks;
  request.num_microbatches = 6;
  Schedule schedule = build_schedule(setting.schedule, request);
  if (setting.offloads) schedule = with_offload(schedule, {.ahead = 1});
  HashPipelineOptions options;
  options.default_streams = number % 2 == 0;
  for (int rank = 0; rank < setting.num_ranks; ++rank)
    options.devices.push_back(setting.two_devices ? rank % 2 : 0);
  return std::make_unique<HashPipeline>(lower_for_hashes(schedule, {}), options);
}

void run_passes(HashPipeline& pipeline, const Setting& setting, const cuda_fake::Plant& plant) {
  for (int i = 0; i < kPassesEach; ++i) {
    if (!setting.fails) {
      pipeline.run(true);
      continue;
    }
    cuda_fake::plant(plant);
    pipeline.run_failing(pipeline.actions().back());
    cuda_fake::plant({});
    pipeline.run(true);
  }
}

// How many passes it took until a result was wrong. Ends the program if none was.
void expect_wrong(const std::string& mistake, const Setting& setting,
                  const cuda_fake::Plant& plant) {
  int num_passes = 0;
  bool is_wrong = false;
  for (int number = 0; !is_wrong && num_passes < kMaxPasses; ++number) {
    cuda_fake::set_delays(static_cast<unsigned>(number), 100);
    const auto pipeline = make_pipeline(setting, number);
    if (!setting.fails) cuda_fake::plant(plant);
    run_passes(*pipeline, setting, plant);
    is_wrong = pipeline->num_wrong() > 0;
    num_passes += kPassesEach;
    CHECK(setting.fails || cuda_fake::num_planted() > 0);
    cuda_fake::plant({});
  }
  std::printf("%-60s %s %d passes\n", mistake.c_str(), is_wrong ? "shows within" : "not seen in",
              num_passes);
  CHECK(is_wrong);
}

void expect_right(const Setting& setting) {
  for (int number = 0; number < 4; ++number) {
    cuda_fake::set_delays(static_cast<unsigned>(number), 100);
    const auto pipeline = make_pipeline(setting, number);
    run_passes(*pipeline, setting, {});
    CHECK(pipeline->num_wrong() == 0);
  }
}

const Setting kTwoRanks{.schedule = "1f1b", .num_ranks = 2};
const Setting kTwoDevices{.schedule = "1f1b", .num_ranks = 2, .two_devices = true};
const Setting kOffload{.schedule = "gpipe", .offloads = true};
const Setting kFailing{.schedule = "zb_h1", .num_ranks = 2, .fails = true};

void test_nothing_is_wrong_without_a_mistake() {
  for (const Setting& setting : {kTwoRanks, kTwoDevices, kOffload, kFailing}) expect_right(setting);
}

void test_each_wait_is_needed() {
  using enum Role;
  expect_wrong("a pass doesn't wait for the caller", kTwoRanks, no_wait(kCompute, kCaller));
  expect_wrong("the caller doesn't wait for the pass", kTwoRanks, no_wait(kCaller, kCompute));
  expect_wrong("the caller doesn't wait for a pass that failed", kFailing,
               no_wait(kCaller, kCompute));
  expect_wrong("a receive lane doesn't wait for the sender", kTwoRanks,
               no_wait(kTransfer, kCompute));
  expect_wrong("compute doesn't wait for the receive lane", kTwoRanks,
               no_wait(kCompute, kTransfer));
  // Two do, the copy's own lane and the receive lane, whose place torch has the copy wait for.
  expect_wrong("a copy between devices doesn't wait for the sender", kTwoDevices,
               no_wait(kTransfer, kCompute));
  expect_wrong("compute doesn't wait for a copy between devices", kTwoDevices,
               no_wait(kCompute, kTransfer));
  expect_wrong("a receive lane doesn't wait for the copy between devices", kTwoDevices,
               no_wait(kTransfer, kTransfer));
  expect_wrong("an OFFLOAD doesn't wait for its F", kOffload, no_wait(kTransfer, kCompute));
  expect_wrong("a RELOAD doesn't wait for its OFFLOAD", kOffload, no_wait(kTransfer, kTransfer));
  expect_wrong("a B doesn't wait for its RELOAD", kOffload, no_wait(kCompute, kTransfer));
}

void test_no_mark_may_be_recorded_early() {
  using enum Role;
  expect_wrong("the caller's mark before a pass is early", kTwoRanks, early_mark(kCaller));
  expect_wrong("marks of compute are early", kTwoRanks, early_mark(kCompute));
  expect_wrong("marks of receive lanes are early", kTwoRanks, early_mark(kTransfer));
  expect_wrong("marks of receive lanes behind copies are early", kTwoDevices,
               early_mark(kTransfer));
  // Behind the activation, which is what moves, the loss has an allocation and a kernel.
  expect_wrong("marks of F before an OFFLOAD are early", kOffload, early_mark(kCompute, 3));
  expect_wrong("marks of OFFLOAD and RELOAD are early", kOffload, early_mark(kTransfer));
}

void test_each_adoption_is_needed() {
  using enum Role;
  expect_wrong("compute doesn't adopt what it receives", kTwoRanks, no_adoption(kCompute));
  expect_wrong("compute doesn't adopt a copy between devices", kTwoDevices, no_adoption(kCompute));
  expect_wrong("a receive lane doesn't adopt what is copied", kTwoDevices, no_adoption(kTransfer));
  expect_wrong("OFFLOAD's lane doesn't adopt what leaves", kOffload, no_adoption(kTransfer));
  expect_wrong("compute doesn't adopt what RELOAD brings", kOffload, no_adoption(kCompute));
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  alarm(240);  // nothing here may hang
  test_nothing_is_wrong_without_a_mistake();
  test_each_wait_is_needed();
  test_no_mark_may_be_recorded_early();
  test_each_adoption_is_needed();
}

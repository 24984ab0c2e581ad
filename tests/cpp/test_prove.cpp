// The prover: every Program that lower() makes is proved; each flaw is named, with its places.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "interleavings.h"
#include "ir/schedule.h"
#include "plan/lower.h"
#include "plan/prove.h"
#include "schedule/offload.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

// Sizes that a generator can't take, updates, which don't run yet, and pairs whose halves would
// make ranks wait for each other.
bool is_told(const ValueError& error) {
  const std::string_view what = error.what();
  return what.starts_with("num_") || what.find("UPDATEv1") != std::string_view::npos ||
         what.find("wait") != std::string_view::npos;
}

Schedule build(const char* name, int num_ranks, int num_microbatches) {
  return build_schedule(name, {.num_ranks = num_ranks,
                               .num_microbatches = num_microbatches,
                               .num_stages = 0,
                               .options = {}});
}

std::vector<LowerOptions> options() {
  return {{},
          {.receive_slots = 1},
          {.receive_slots = 3, .send_slots = 1},
          {.receive_slots = 1, .send_slots = 2, .joint_pairs = true},
          {.joint_pairs = true}};
}

int num_proved = 0;

void prove_all(const Schedule& schedule) {
  for (const LowerOptions& each : options()) {
    std::vector<Program> programs;
    try {
      programs = lower(schedule, each);
    } catch (const ValueError& error) {
      CHECK(is_told(error));
      continue;
    }
    const Proof proof = prove(programs);
    CHECK(proof.ok());
    CHECK(proof.is_whole && proof.num_assumed == 0);
    for (const Program& program : programs) CHECK(prove({&program, 1}).ok());
    ++num_proved;
  }
}

void programs_of_every_generator_are_proved() {
  for (const Generator* generator : generators()) {
    for (int num_ranks = 1; num_ranks <= 4; ++num_ranks) {
      for (int num_microbatches = 1; num_microbatches <= 6; ++num_microbatches) {
        try {
          const Schedule schedule = build(generator->name.data(), num_ranks, num_microbatches);
          prove_all(schedule);
          prove_all(with_offload(schedule, {}));
          prove_all(forward_only(schedule));
        } catch (const ValueError& error) {
          CHECK(is_told(error));
        }
      }
    }
  }
  CHECK(num_proved > 1000);
}

// Rank 1 reads the second message first, and its channel takes a message in when it is read.
void a_release_that_waits_for_a_message_that_is_read_later_is_a_deadlock() {
  Schedule schedule{.name = "out of order",
                    .num_microbatches = 2,
                    .num_slices = 1,
                    .placement = Placement::loop(2, 2),
                    .ranks = {{forward(0, 0), forward(0, 1)}, {forward(1, 1), forward(1, 0)}}};
  std::vector<Program> programs = lower(schedule);
  CHECK(prove(programs).ok());
  auto& first = programs[0].instructions;  // run, send, run, send, release, release
  CHECK(std::get<Release>(first[4].op).sequence == 0);
  std::rotate(first.begin() + 2, first.begin() + 4, first.begin() + 5);
  CHECK(Interleavings(programs, /*in_order=*/true).fate() == Fate::kStuck);
  const Proof proof = prove(programs);
  CHECK(proof.flaw == Flaw::kDeadlock);
  CHECK(proof.places.size() == 5);
  CHECK(proof.message.find("rank 0 at %2 (release activation of stage 0, microbatch 0 #0 s0), "
                           "which waits for rank 1 at %2 (run 1F1 reads s1)") != std::string::npos);
}

void a_pair_that_is_none_is_malformed() {
  const Program good = lower(build("1f1b", 1, 2)).front();  // 0F0 0B0 0F1 0B1
  CHECK(prove({&good, 1}).ok());
  const std::vector<std::vector<std::size_t>> wrong = {
      {1},     // a backward, then a forward
      {3},     // the last instruction
      {4},     // behind it
      {2, 0},  // not in order
      {0, 1},  // one half in two
      {static_cast<std::size_t>(-1)},
  };
  for (const auto& pairs : wrong) {
    Program program = good;
    program.joint_pairs = pairs;
    CHECK(prove({&program, 1}).flaw == Flaw::kMalformed);
  }
  Program empty = good;
  empty.instructions.clear();
  CHECK(prove({&empty, 1}).ok());
  empty.joint_pairs = {0};
  CHECK(prove({&empty, 1}).flaw == Flaw::kMalformed);
}

void a_negative_number_of_marks_is_malformed() {
  Program program = lower(build("1f1b", 1, 2)).front();
  program.num_marks = -1;
  CHECK(prove({&program, 1}).flaw == Flaw::kMalformed);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::programs_of_every_generator_are_proved();
  pipert::a_release_that_waits_for_a_message_that_is_read_later_is_a_deadlock();
  pipert::a_pair_that_is_none_is_malformed();
  pipert::a_negative_number_of_marks_is_malformed();
}

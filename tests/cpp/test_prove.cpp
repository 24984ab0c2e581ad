// The prover: every Program that lower() makes is proved; each flaw is named, with its places.

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
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

}  // namespace
}  // namespace pipert

int main() { pipert::programs_of_every_generator_are_proved(); }

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

std::size_t find(const Program& program, std::string_view text) {
  const auto& all = program.instructions;
  const auto found = std::find_if(all.begin(), all.end(), [&](const Instruction& each) {
    return to_string(program, each).starts_with(text);
  });
  CHECK(found != all.end());
  return static_cast<std::size_t>(found - all.begin());
}

// To stand before the instruction that is at `to`.
void move_up(Program& program, std::size_t from, std::size_t to) {
  const auto begin = program.instructions.begin();
  const auto at = begin + static_cast<std::ptrdiff_t>(from);
  std::rotate(begin + static_cast<std::ptrdiff_t>(to), at, at + 1);
}

Schedule two_ranks(std::vector<Action> first, std::vector<Action> second, int num_microbatches) {
  return {.name = "two ranks",
          .num_microbatches = num_microbatches,
          .num_slices = 1,
          .placement = Placement::loop(2, 2),
          .ranks = {std::move(first), std::move(second)}};
}

// Rank 1 fills a slot again because of a message that rank 0 made before the Run that reads from
// it, and sent behind that Run.
void a_message_tells_what_its_rank_was_sure_of_when_it_left() {
  std::vector<Program> programs = lower(two_ranks(
      {forward(0, 0), forward(0, 1), forward(0, 2), backward(0, 0), backward(0, 1), backward(0, 2)},
      {forward(1, 0), backward(1, 0), forward(1, 1), forward(1, 2), backward(1, 1), backward(1, 2)},
      3));
  Program& first = programs[0];
  Program& second = programs[1];
  move_up(first, find(first, "run 0B0"), find(first, "send activation of stage 0, microbatch 2"));
  move_up(second, find(second, "release gradient of stage 1, microbatch 0"),
          find(second, "run 1B1"));
  const SlotId freed =
      std::get<Run>(second.instructions[find(second, "run 1B0")].op).writes.front();
  Instruction& again = second.instructions[find(second, "run 1B1")];
  std::get<Run>(again.op).writes = {freed};
  for (const char* each :
       {"send gradient of stage 1, microbatch 1", "release gradient of stage 1, microbatch 1"}) {
    auto& op = second.instructions[find(second, each)].op;
    if (auto* send = std::get_if<Send>(&op)) send->slot = freed;
    if (auto* release = std::get_if<Release>(&op)) release->slot = freed;
  }
  CHECK(Interleavings(programs, /*in_order=*/false).fate() == Fate::kWrong);
  const Proof proof = prove(programs);
  CHECK(proof.flaw == Flaw::kRace);
  CHECK(proof.message.ends_with("nothing that came back shows that the message has arrived"));
  Instruction& read = first.instructions[find(first, "run 0B0")];
  if (read.mark == kNoMark) read.mark = first.num_marks++;
  first.instructions[find(first, "send activation of stage 0, microbatch 2")].waits.push_back(
      read.mark);
  CHECK(Interleavings(programs, /*in_order=*/false).fate() == Fate::kRight);
  CHECK(prove(programs).ok());
}

void a_release_of_another_message_is_none() {
  std::vector<Program> programs = lower(build("1f1b", 2, 2));
  Program& first = programs[0];
  const std::size_t at = find(first, "release activation of stage 0, microbatch 0");
  std::get<Release>(first.instructions[at].op).sequence = 1;
  const Proof proof = prove(programs);
  CHECK(proof.flaw == Flaw::kMessage);
  CHECK(proof.message.find("is for the Send of #0") != std::string::npos);
}

// Rank 1 reads the second message first, and its channel takes a message in when it is read.
void a_release_that_waits_for_a_message_that_is_read_later_is_a_deadlock() {
  std::vector<Program> programs =
      lower(two_ranks({forward(0, 0), forward(0, 1)}, {forward(1, 1), forward(1, 0)}, 2));
  CHECK(prove(programs).ok());
  Program& first = programs[0];
  move_up(first, find(first, "release activation of stage 0, microbatch 0"),
          find(first, "run 0F1"));
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
  pipert::a_message_tells_what_its_rank_was_sure_of_when_it_left();
  pipert::a_release_of_another_message_is_none();
  pipert::a_release_that_waits_for_a_message_that_is_read_later_is_a_deadlock();
  pipert::a_pair_that_is_none_is_malformed();
  pipert::a_negative_number_of_marks_is_malformed();
}

// Of Programs whose stages read more than the chain gives them, what is changed in what they read
// and keep is found and named.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "ir/schedule.h"
#include "plan/lower.h"
#include "plan/prove.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

using Programs = std::vector<Program>;

// Two ranks with two stages each: rank 0 has 0 and 2, rank 1 has 1 and 3. Stage 1 keeps what stage
// 0 made for stage 3; stage 2 gets it within its rank, and gives stage 0 its gradient so.
Programs kept_on_two_ranks() {
  const Schedule schedule = build_schedule(
      "interleaved_1f1b", {.num_ranks = 2, .num_microbatches = 2, .num_stages = 4, .options = {}});
  Programs programs =
      lower(schedule, {.stage_graph = make_stage_graph({{0, 2}, {0, 3}}, {{3, 1}, {2, 0}})});
  CHECK(prove(programs).ok());
  return programs;
}

Run& run_of(Program& program, std::string_view action) {
  for (Instruction& instruction : program.instructions) {
    auto* run = std::get_if<Run>(&instruction.op);
    if (run != nullptr && to_string(run->action) == action) return *run;
  }
  std::fprintf(stderr, "no run %s\n", std::string(action).c_str());
  std::abort();
}

SlotId add_local_slot(Program& program) {
  program.slots.push_back({.edge = {program.rank, program.rank}, .index = 9});
  return static_cast<SlotId>(program.slots.size()) - 1;
}

void refused(const Programs& programs, Flaw flaw, std::string_view text) {
  const Proof proof = prove(programs);
  if (proof.flaw != flaw || proof.message.find(text) == std::string::npos)
    std::fprintf(stderr, "%s\n", proof.message.c_str());
  CHECK(proof.flaw == flaw);
  CHECK(proof.message.find(text) != std::string::npos);
}

void a_message_that_is_not_kept_or_kept_in_vain_is_found() {
  const Programs good = kept_on_two_ranks();
  Programs programs = good;
  Read& first = *run_of(programs[1], "1F0").reads.begin();
  CHECK(first.keeps != kNoSlot);
  first.keeps = kNoSlot;
  refused(programs, Flaw::kSlot,
          "(run 3F0 reads s0 s2): s2: uses a slot that is empty after nobody");

  programs = good;
  Run& last = run_of(programs[1], "3F0");
  CHECK(last.reads.size() == 2);
  last.reads = {last.reads.front()};
  refused(programs, Flaw::kMessage,
          "needs the activation of stage 0, microbatch 0, but doesn't read it");

  programs = good;
  run_of(programs[1], "3F0").reads.begin()->keeps = add_local_slot(programs[1]);
  refused(programs, Flaw::kSlot,
          "still holds the activation of stage 2, microbatch 0 at the end, since");
}

void a_message_kept_in_another_slot_is_found() {
  const Programs good = kept_on_two_ranks();
  Programs programs = good;
  run_of(programs[1], "1F0").reads.begin()->keeps = add_local_slot(programs[1]);
  refused(programs, Flaw::kSlot,
          "(run 3F0 reads s0 s2): s2: uses a slot that is empty after nobody");

  // With the next microbatch's.
  programs = good;
  std::swap(run_of(programs[1], "1F0").reads.begin()->keeps,
            run_of(programs[1], "1F1").reads.begin()->keeps);
  refused(programs, Flaw::kMessage,
          "(run 3F0 reads s0 s2): s2: needs the activation of stage 0, microbatch 0, but the slot "
          "holds the activation of stage 0, microbatch 1 of");

  programs = good;
  const SlotId receive = run_of(programs[1], "1F0").reads.front().slot;
  run_of(programs[1], "1F0").reads.begin()->keeps = receive;
  refused(programs, Flaw::kMalformed, "a Run keeps what it reads in local slots");
}

void reads_in_another_order_or_of_nobody_are_found() {
  const Programs good = kept_on_two_ranks();
  Programs programs = good;
  Run& run = run_of(programs[1], "3F0");
  std::swap(*run.reads.begin(), *(run.reads.begin() + 1));
  refused(programs, Flaw::kMessage,
          "needs the activation of stage 2, microbatch 0, but the slot holds the activation of "
          "stage 0, microbatch 0");

  programs = good;
  Run& further = run_of(programs[0], "2F0");
  further.reads.push_back(further.reads.front());
  refused(programs, Flaw::kMessage, "reads no further message");

  // The graph says of less: then what was right is too much.
  programs = good;
  for (Program& program : programs) program.stage_graph.activations.pop_back();
  refused(programs, Flaw::kMessage, "reads no further message");
  programs = good;
  for (Program& program : programs) program.stage_graph.gradients = {};
  refused(programs, Flaw::kMessage, "reads no further message");
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::a_message_that_is_not_kept_or_kept_in_vain_is_found();
  pipert::a_message_kept_in_another_slot_is_found();
  pipert::reads_in_another_order_or_of_nobody_are_found();
}

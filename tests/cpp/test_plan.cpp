// The plan floor: programs of every generator, over small sizes, keep lower()'s promises; printing;
// mistakes.

#include "plan/lower.h"

#include <map>
#include <set>
#include <string>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "ir/schedule.h"
#include "plan/incoming.h"
#include "plan/slot_pool.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

// (edge, sequence) -> message.
using Messages = std::map<std::pair<Edge, int>, MessageKey>;

Edge edge_of(const Program& program, SlotId slot) { return program.slots[as_index(slot)].edge; }

// Walks the program in its order: marks are set before they are waited for, slots are filled and
// emptied in turn. Adds what is sent and received.
void walk(const Program& program, Messages& sent, Messages& received) {
  std::set<MarkId> marks;
  std::set<SlotId> full;
  for (const Instruction& instruction : program.instructions) {
    for (const MarkId mark : instruction.waits) CHECK(marks.contains(mark));
    if (instruction.mark != kNoMark) CHECK(marks.insert(instruction.mark).second);
    if (const auto* recv = std::get_if<Recv>(&instruction.op)) {
      CHECK(full.insert(recv->slot).second);
      const auto key = std::pair(edge_of(program, recv->slot), recv->sequence);
      CHECK(received.emplace(key, recv->message).second);
    } else if (const auto* run = std::get_if<Run>(&instruction.op)) {
      for (const SlotId slot : run->reads) CHECK(full.erase(slot) == 1);
      for (const SlotId slot : run->writes) CHECK(full.insert(slot).second);
    } else if (const auto* send = std::get_if<Send>(&instruction.op)) {
      CHECK(full.contains(send->slot));
      const auto key = std::pair(edge_of(program, send->slot), send->sequence);
      CHECK(sent.emplace(key, send->message).second);
    } else {
      CHECK(full.erase(std::get<Release>(instruction.op).slot) == 1);
    }
  }
  CHECK(full.empty());
  CHECK(static_cast<int>(marks.size()) == program.num_marks);
}

void programs_of_every_generator_keep_their_promises() {
  int lowered = 0;
  for (const Generator* generator : generators()) {
    for (int num_ranks = 1; num_ranks <= 4; ++num_ranks) {
      for (int num_microbatches = 1; num_microbatches <= 6; ++num_microbatches) {
        for (int slots = 1; slots <= 3; ++slots) {
          try {
            const Schedule schedule =
                build_schedule(generator->name, {.num_ranks = num_ranks,
                                                 .num_microbatches = num_microbatches,
                                                 .num_stages = 0,
                                                 .options = {}});
            Messages sent;
            Messages received;
            for (const Program& program : lower(schedule, {.receive_slots = slots})) {
              walk(program, sent, received);
            }
            CHECK(sent == received);
            ++lowered;
          } catch (const ValueError& error) {
            const std::string_view what = error.what();
            const bool is_asynchronous = what.find("UPDATEv1") != std::string_view::npos;
            CHECK(what.starts_with("num_") || is_asynchronous);
          }
        }
      }
    }
  }
  CHECK(lowered > 100);
}

Schedule parse(const std::vector<std::vector<std::string>>& ranks, Placement placement,
               int num_microbatches) {
  Schedule schedule{.name = "custom",
                    .num_microbatches = num_microbatches,
                    .placement = std::move(placement),
                    .ranks = {}};
  for (const auto& actions : ranks) {
    auto& parsed = schedule.ranks.emplace_back();
    for (const std::string& text : actions) parsed.push_back(parse_action(text));
  }
  return schedule;
}

void activations_are_counted_by_microbatch_where_only_some_backwards_are_split() {
  const Schedule schedule =
      parse({{"0F0", "0I0", "0F1", "0B1", "0W0", "0F2", "0B2"}}, Placement::loop(1, 1), 3);
  CHECK(lower(schedule).front().peak_activations == 2);
  const Schedule whole = parse({{"0F0", "0B0", "0F1", "0I1", "0W1"}}, Placement::loop(1, 1), 2);
  CHECK(lower(whole).front().peak_activations == 1);
}

void a_hand_over_inside_a_rank_is_no_message() {
  const Schedule schedule = parse({{"0F0", "1F0", "1B0", "0B0"}}, Placement(1, {0, 0}), 1);
  const Program program = lower(schedule).front();
  CHECK(program.instructions.size() == 4);
  CHECK(program.lanes.size() == 1);
  for (const Slot& slot : program.slots) CHECK(slot.kind == SlotKind::kLocal);
}

void receives_are_posted_a_run_ahead_even_where_messages_are_read_out_of_order() {
  // Rank 1 reads microbatch 1 before microbatch 0.
  const Schedule schedule = parse(
      {{"0F0", "0F1", "0F2", "0B1", "0B0", "0B2"}, {"1F1", "1B1", "1F0", "1B0", "1F2", "1B2"}},
      Placement::loop(2, 2), 3);
  std::map<SlotId, int> posted;
  int num_runs = 0;
  const Program program = lower(schedule)[1];
  for (const Instruction& instruction : program.instructions) {
    if (const auto* recv = std::get_if<Recv>(&instruction.op)) posted[recv->slot] = num_runs;
    const auto* run = std::get_if<Run>(&instruction.op);
    if (run == nullptr) continue;
    for (const SlotId slot : run->reads) CHECK(posted.at(slot) <= std::max(0, num_runs - 1));
    ++num_runs;
  }
  CHECK(num_runs == 6);
}

void slots_are_reused_lowest_first() {
  SlotPool pool;
  const Edge edge{0, 1};
  const SlotId first = pool.take(SlotKind::kSend, edge);
  const SlotId second = pool.take(SlotKind::kSend, edge);
  CHECK(first != second);
  CHECK(pool.take(SlotKind::kReceive, edge) != first);
  pool.give_back(second);
  pool.give_back(first);
  CHECK(pool.take(SlotKind::kSend, edge) == first);
  CHECK(std::move(pool).slots().size() == 3);
}

void instructions_print_on_one_line_and_waits_in_words() {
  const Schedule schedule = parse({{"0F0", "0B0"}, {"1F0", "1B0"}}, Placement::loop(2, 2), 1);
  const Program program = lower(schedule)[1];
  CHECK(to_string(program, program.instructions[0]) ==
        "recv activation of stage 0, microbatch 0 #0 s0  on receive 0->1  sets m0");
  CHECK(describe_wait(program, 1) ==
        "to run 1F0, for the activation of stage 0, microbatch 0, from rank 0");
  CHECK(describe_wait(program, program.instructions.size() - 1) ==
        "until rank 0 has the gradient of stage 1, microbatch 0");
  CHECK(to_string(program).starts_with("program of rank 1 of 2: 5 instructions"));
}

void mistakes_throw() {
  const Schedule good = parse({{"0F0", "0B0"}}, Placement::loop(1, 1), 1);
  CHECK_THROWS(lower(good, {.receive_slots = 0}), ValueError);
  CHECK_THROWS(lower(parse({{"0B0", "0F0"}}, Placement::loop(1, 1), 1)), ValueError);
  CHECK_THROWS(lower(parse({{"0UNSHARD", "0F0", "0B0"}}, Placement::loop(1, 1), 1)), ValueError);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::programs_of_every_generator_keep_their_promises();
  pipert::activations_are_counted_by_microbatch_where_only_some_backwards_are_split();
  pipert::a_hand_over_inside_a_rank_is_no_message();
  pipert::receives_are_posted_a_run_ahead_even_where_messages_are_read_out_of_order();
  pipert::slots_are_reused_lowest_first();
  pipert::instructions_print_on_one_line_and_waits_in_words();
  pipert::mistakes_throw();
}

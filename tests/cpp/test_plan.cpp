// The plan floor: programs of every generator, over small sizes, keep lower()'s promises; printing;
// mistakes.

#include "plan/lower.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "ir/schedule.h"
#include "plan/clocks.h"
#include "plan/dataflow.h"
#include "plan/few.h"
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
      for (const auto& [slot, keeps] : run->reads) CHECK(full.erase(slot) == 1);
      for (const auto& [slot, keeps] : run->reads)
        CHECK(keeps == kNoSlot || full.insert(keeps).second);
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

// Sizes that a generator can't take, and updates, which don't run yet.
bool is_told(const ValueError& error) {
  const std::string_view what = error.what();
  return what.starts_with("num_") || what.find("UPDATEv1") != std::string_view::npos;
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
            CHECK(is_told(error));
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
    for (const auto& [slot, keeps] : run->reads)
      CHECK(posted.at(slot) <= std::max(0, num_runs - 1));
    ++num_runs;
  }
  CHECK(num_runs == 6);
}

// Of each message that crosses ranks: where its sender knows that it was received.
std::vector<int> known(const Dataflow& dataflow, const Clocks& clocks) {
  std::vector<int> result;
  for (Rank rank = 0; rank < dataflow.num_ranks(); ++rank) {
    for (int i = 0; i < static_cast<int>(dataflow.runs(rank).size()); ++i) {
      for (const Delivery& delivery : dataflow.writes_of({rank, i})) {
        if (delivery.crosses())
          result.push_back(clocks.known_received(delivery.writer, delivery.reader));
      }
    }
  }
  return result;
}

void clocks_that_track_few_ranks_know_as_much_as_full_ones_where_stages_have_a_usual_place() {
  int compared = 0;
  for (const Generator* generator : generators()) {
    for (int num_ranks = 1; num_ranks <= 8; ++num_ranks) {
      for (const int num_microbatches : {8, 11, 16, 24}) {
        for (const bool training : {true, false}) {
          try {
            const Schedule built =
                build_schedule(generator->name, {.num_ranks = num_ranks,
                                                 .num_microbatches = num_microbatches,
                                                 .num_stages = 0,
                                                 .options = {}});
            const Schedule schedule = training ? built : forward_only(built);
            const Dataflow dataflow(schedule);
            CHECK(known(dataflow, Clocks(dataflow, 0)) == known(dataflow, Clocks(dataflow, 8)));
            ++compared;
          } catch (const ValueError& error) {
            CHECK(is_told(error));
          }
        }
      }
    }
  }
  CHECK(compared > 200);
}

// The order in which a random run of a random placement did its work: F and B of each stage.
Schedule random_schedule(std::mt19937& random, int num_ranks, int num_stages,
                         int num_microbatches) {
  std::vector<Rank> rank_of;
  for (StageIndex stage = 0; stage < num_stages; ++stage) rank_of.push_back(stage % num_ranks);
  std::shuffle(rank_of.begin(), rank_of.end(), random);
  Schedule schedule{.name = "random",
                    .num_microbatches = num_microbatches,
                    .placement = Placement(num_ranks, rank_of),
                    .ranks = {}};
  schedule.ranks.resize(as_index(num_ranks));
  std::vector<int> done(as_index(num_microbatches), 0);  // down the stages, and up again
  std::vector<Microbatch> going;
  for (Microbatch m = 0; m < num_microbatches; ++m) going.push_back(m);
  while (!going.empty()) {
    const auto at = std::uniform_int_distribution<std::size_t>(0, going.size() - 1)(random);
    const Microbatch m = going[at];
    const int step = done[as_index(m)]++;
    const StageIndex stage = step < num_stages ? step : 2 * num_stages - 1 - step;
    schedule.ranks[as_index(rank_of[as_index(stage)])].push_back(
        step < num_stages ? forward(stage, m) : backward(stage, m));
    if (done[as_index(m)] == 2 * num_stages) going.erase(going.begin() + static_cast<int>(at));
  }
  return schedule;
}

void clocks_that_track_few_ranks_never_know_more_than_full_ones() {
  std::mt19937 random(3);
  int later = 0;
  for (int round = 0; round < 200; ++round) {
    const Schedule schedule = random_schedule(random, 2 + round % 7, 9 + round % 5, 1 + round % 6);
    const Dataflow dataflow(schedule);
    const std::vector<int> some = known(dataflow, Clocks(dataflow, 0));
    const std::vector<int> full = known(dataflow, Clocks(dataflow, 8));
    CHECK(some.size() == full.size());
    for (std::size_t i = 0; i < some.size(); ++i) {
      CHECK(some[i] >= full[i]);
      later += some[i] > full[i] ? 1 : 0;
    }
  }
  CHECK(later > 0);  // or the two were the same thing
}

void ranks_lowered_at_once_by_several_threads_get_the_programs_of_lower() {
  const Schedule schedule =
      build_schedule("interleaved_1f1b",
                     {.num_ranks = 20, .num_microbatches = 20, .num_stages = 40, .options = {}});
  const std::vector<Program> expected = lower(schedule);
  const Lowering lowering(schedule);
  std::vector<std::string> texts(expected.size());
  std::vector<std::thread> threads;
  for (Rank first = 0; first < 4; ++first) {
    threads.emplace_back([&, first] {
      for (Rank rank = first; rank < lowering.num_ranks(); rank += 4) {
        texts[as_index(rank)] = to_string(lowering.program(rank));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    CHECK(texts[rank] == to_string(expected[rank]));
  }
  CHECK_THROWS(lowering.program(20), IndexError);
  CHECK_THROWS(lowering.program(-1), IndexError);
}

void an_instruction_is_small() {
  static_assert(sizeof(Instruction) <= 72);  // a hundred million of them fit into 8 GB
  static_assert(std::is_nothrow_move_constructible_v<Instruction>);
  static_assert(std::is_nothrow_move_assignable_v<Instruction>);
}

template <typename T, std::size_t kMost>
std::vector<T> listed(const Few<T, kMost>& few) {
  return {few.begin(), few.end()};
}

void a_few_values_are_the_same_within_and_beyond_what_stands_in_the_row() {
  Few<SlotId, 2> ids;
  std::vector<SlotId> expected;
  CHECK(ids.empty() && ids.begin() == ids.end());
  for (const SlotId id : {0, 7, 1, 2'147'483'647, 3}) {
    const Few<SlotId, 2> before = ids;
    ids.push_back(id);
    expected.push_back(id);
    CHECK(listed(ids) == expected && !ids.empty() && ids.front() == 0);
    CHECK(ids.size() == expected.size() && before.size() + 1 == ids.size());
    CHECK(!(before == ids));
    Few<SlotId, 2> copy = ids;
    copy.push_back(9);  // of its own
    CHECK(listed(ids) == expected);
    const Few<SlotId, 2> moved = std::move(copy);
    CHECK(moved.size() == expected.size() + 1 && *(moved.end() - 1) == 9);
    copy = ids;
    CHECK(copy == ids);
  }
  *ids.begin() = 4;
  CHECK(ids.front() == 4);
  ids = {5};
  CHECK(listed(ids) == std::vector<SlotId>{5});

  Few<Read, 1> reads = {{3, 4}, {5}};
  CHECK(reads.size() == 2 && reads.front().keeps == 4 && (reads.begin() + 1)->keeps == kNoSlot);
  CHECK((reads == Few<Read, 1>{{3, 4}, {5, kNoSlot}}) && !(reads == Few<Read, 1>{{3, 4}}));
}

void slots_are_reused_lowest_first() {
  SlotPool pool;
  const SlotPool::Group send = pool.add_group(SlotKind::kSend, {0, 1});
  const SlotPool::Group receive = pool.add_group(SlotKind::kReceive, {0, 1});
  const SlotId first = pool.take(send);
  const SlotId second = pool.take(send);
  CHECK(first != second);
  CHECK(pool.take(receive) != first);
  pool.give_back(second);
  pool.give_back(first);
  CHECK(pool.take(send) == first);
  CHECK(pool.size() == 3);
  const std::vector<Slot> slots = std::move(pool).slots();
  CHECK(slots[as_index(second)].kind == SlotKind::kSend);
  CHECK(slots[as_index(second)].index == 1);
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
  CHECK(describe_transfer(program, 0) ==
        "posted the receive of the activation of stage 0, microbatch 0, from rank 0");
  CHECK(describe_transfer(program, 1) ==
        "waited to run 1F0, for the activation of stage 0, microbatch 0, from rank 0");
  CHECK(describe_transfer(program, 3) ==
        "sent the gradient of stage 1, microbatch 0, to stage 0 on rank 0");
  CHECK(to_string(program).starts_with("program of rank 1 of 2: 5 instructions"));
}

void skip_edges_print_in_the_header_and_a_message_for_several_stages_names_its_rank() {
  const Schedule schedule =
      parse({{"0F0", "0B0"}, {"1F0", "1B0"}, {"2F0", "2B0"}}, Placement::loop(3, 3), 1);
  const LowerOptions options{.stage_graph = make_stage_graph({{0, 2}}, {{2, 0}})};
  const std::vector<Program> programs = lower(schedule, options);
  CHECK(to_string(programs[2])
            .find("\n  beyond the chain: activations 0->2, gradients 2->0\n  s0:") !=
        std::string::npos);
  const auto sends = [](const Program& program) {
    std::vector<std::string> texts;
    for (std::size_t i = 0; i < program.instructions.size(); ++i) {
      if (std::holds_alternative<Send>(program.instructions[i].op))
        texts.push_back(describe_transfer(program, i));
    }
    return texts;
  };
  CHECK((sends(programs[0]) ==
         std::vector<std::string>{"sent the activation of stage 0, microbatch 0, to rank 1",
                                  "sent the activation of stage 0, microbatch 0, to rank 2"}));
  CHECK(sends(programs[1]).front() ==
        "sent the activation of stage 1, microbatch 0, to stage 2 on rank 2");
  CHECK(describe_wait(programs[2], 2) ==
        "to run 2F0, for the activation of stage 1, microbatch 0, from rank 1, for the activation "
        "of stage 0, microbatch 0, from rank 0");
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
  pipert::clocks_that_track_few_ranks_know_as_much_as_full_ones_where_stages_have_a_usual_place();
  pipert::clocks_that_track_few_ranks_never_know_more_than_full_ones();
  pipert::ranks_lowered_at_once_by_several_threads_get_the_programs_of_lower();
  pipert::an_instruction_is_small();
  pipert::a_few_values_are_the_same_within_and_beyond_what_stands_in_the_row();
  pipert::slots_are_reused_lowest_first();
  pipert::instructions_print_on_one_line_and_waits_in_words();
  pipert::skip_edges_print_in_the_header_and_a_message_for_several_stages_names_its_rank();
  pipert::mistakes_throw();
}

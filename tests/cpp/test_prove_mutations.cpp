// Programs with one mark, wait, slot or place changed: the prover objects, or they are right in
// every order in which lanes and ranks may go on.

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

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

using Programs = std::vector<Program>;
using Visit = std::function<void(const Programs&)>;

Fate fate(const Programs& programs) {
  for (const bool in_order : {false, true}) {
    const Fate fate = Interleavings(programs, in_order).fate();
    if (fate != Fate::kRight) return fate;
  }
  return Fate::kRight;
}

struct Tally {
  int num_accepted = 0;
  int num_refused = 0;
  int num_explored = 0;  // of those refused
  int num_wrong = 0;     // of those explored
};

// Refusing what is right is allowed, so few of the refused are explored: enough to see that it is
// not all that the prover does.
constexpr int kExploreEvery = 32;

void judge(const Programs& programs, Tally& tally) {
  const Proof proof = prove(programs);
  if (proof.ok()) {
    ++tally.num_accepted;
    const Fate real = fate(programs);
    if (real != Fate::kRight) {
      for (const Program& program : programs)
        std::fprintf(stderr, "%s", to_string(program).c_str());
    }
    CHECK(real == Fate::kRight);
    return;
  }
  CHECK(!proof.message.empty());
  ++tally.num_refused;
  // A mark that is never set, or waited for before, is no wait at all: nothing to explore.
  if (proof.flaw == Flaw::kMark || proof.flaw == Flaw::kMalformed) return;
  if (tally.num_refused % kExploreEvery != 0) return;
  ++tally.num_explored;
  tally.num_wrong += fate(programs) == Fate::kRight ? 0 : 1;
}

void change_waits(Programs programs, std::size_t rank, std::size_t i, const Visit& visit) {
  Few<MarkId, 3>& waits = programs[rank].instructions[i].waits;
  const Few<MarkId, 3> given = waits;
  const std::vector<MarkId> marks(given.begin(), given.end());
  for (std::size_t left_out = 0; left_out < marks.size(); ++left_out) {
    for (MarkId other = kNoMark; other < programs[rank].num_marks; ++other) {
      if (other == marks[left_out]) continue;
      waits = {};
      for (std::size_t k = 0; k < marks.size(); ++k) {
        const MarkId mark = k == left_out ? other : marks[k];
        if (mark != kNoMark) waits.push_back(mark);
      }
      visit(programs);
    }
  }
}

void change_mark(Programs programs, std::size_t rank, std::size_t i, const Visit& visit) {
  auto& instructions = programs[rank].instructions;
  const MarkId mark = std::exchange(instructions[i].mark, kNoMark);
  if (mark == kNoMark) return;
  visit(programs);
  for (std::size_t k = 0; k < instructions.size(); ++k) {
    if (k == i || instructions[k].mark != kNoMark) continue;
    instructions[k].mark = mark;
    visit(programs);
    instructions[k].mark = kNoMark;
  }
}

void change_slot(const Programs& programs, SlotId& slot, std::size_t rank, const Visit& visit) {
  const SlotId given = slot;
  for (SlotId other = 0; as_index(other) < programs[rank].slots.size(); ++other) {
    slot = other;
    if (other != given) visit(programs);
  }
  slot = given;
}

SlotId& slot_of(SlotId& slot) { return slot; }
SlotId& slot_of(Read& read) { return read.slot; }

// Leaves out each one, and puts another slot in its place. `row`: of one of the `programs`.
template <typename T, std::size_t kMost>
void change_row(Few<T, kMost>& row, const Programs& programs, std::size_t rank,
                const Visit& visit) {
  const Few<T, kMost> given = row;
  for (const T& left_out : given) {
    row = {};
    for (const T& each : given) {
      if (&each != &left_out) row.push_back(each);
    }
    visit(programs);
    row = given;
  }
  for (T& each : row) change_slot(programs, slot_of(each), rank, visit);
}

// Keeps in any other slot, what was not kept too, or not at all; and reads in every other order of
// two.
void change_keeps(Few<Read, 1>& reads, const Programs& programs, std::size_t rank,
                  const Visit& visit) {
  for (Read& read : reads) {
    const SlotId given = std::exchange(read.keeps, kNoSlot);
    if (given != kNoSlot) visit(programs);
    change_slot(programs, read.keeps, rank, visit);
    read.keeps = given;
  }
  for (std::size_t i = 1; i < reads.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      std::swap(*(reads.begin() + k), *(reads.begin() + i));
      visit(programs);
      std::swap(*(reads.begin() + k), *(reads.begin() + i));
    }
  }
}

void change_slots(Programs programs, std::size_t rank, std::size_t i, const Visit& visit) {
  auto& op = programs[rank].instructions[i].op;
  if (auto* recv = std::get_if<Recv>(&op)) change_slot(programs, recv->slot, rank, visit);
  if (auto* send = std::get_if<Send>(&op)) change_slot(programs, send->slot, rank, visit);
  if (auto* release = std::get_if<Release>(&op)) change_slot(programs, release->slot, rank, visit);
  auto* run = std::get_if<Run>(&op);
  if (run == nullptr) return;
  change_row(run->reads, programs, rank, visit);
  change_keeps(run->reads, programs, rank, visit);
  change_row(run->writes, programs, rank, visit);
}

void change_place(const Programs& given, std::size_t rank, std::size_t i, const Visit& visit) {
  for (std::size_t to = 0; to < given[rank].instructions.size(); ++to) {
    Programs programs = given;
    auto& instructions = programs[rank].instructions;
    const Instruction moved = instructions[i];
    instructions.erase(instructions.begin() + static_cast<std::ptrdiff_t>(i));
    instructions.insert(instructions.begin() + static_cast<std::ptrdiff_t>(to), moved);
    if (to != i) visit(programs);
  }
}

Tally judge_mutations(const Programs& programs) {
  CHECK(prove(programs).ok());
  CHECK(fate(programs) == Fate::kRight);
  Tally tally;
  const Visit visit = [&](const Programs& changed) { judge(changed, tally); };
  for (std::size_t rank = 0; rank < programs.size(); ++rank) {
    for (std::size_t i = 0; i < programs[rank].instructions.size(); ++i) {
      change_waits(programs, rank, i, visit);
      change_mark(programs, rank, i, visit);
      change_slots(programs, rank, i, visit);
      change_place(programs, rank, i, visit);
    }
  }
  return tally;
}

Schedule build(const char* name, int num_ranks, int num_microbatches, int num_stages = 0) {
  return build_schedule(name, {.num_ranks = num_ranks,
                               .num_microbatches = num_microbatches,
                               .num_stages = num_stages,
                               .options = {}});
}

Schedule of_pairs() {
  const Action first = overlap(forward(0, 2), backward(0, 0));
  const Action second = overlap(forward(1, 1), backward(1, 0));
  return {.name = "pairs",
          .num_microbatches = 3,
          .num_slices = 1,
          .placement = Placement::loop(2, 2),
          .ranks = {{forward(0, 0), forward(0, 1), first, backward(0, 1), backward(0, 2)},
                    {forward(1, 0), second, backward(1, 1), forward(1, 2), backward(1, 2)}}};
}

// Down the stages and back again.
Schedule one_microbatch(Placement placement) {
  Schedule schedule{.name = "one",
                    .num_microbatches = 1,
                    .num_slices = 1,
                    .placement = std::move(placement),
                    .ranks = {}};
  schedule.ranks.resize(as_index(schedule.placement.num_ranks()));
  const auto add = [&](const Action& action) {
    schedule.ranks[as_index(schedule.placement.rank_of(action.stage))].push_back(action);
  };
  for (StageIndex stage = 0; stage < schedule.num_stages(); ++stage) add(forward(stage, 0));
  for (StageIndex stage = schedule.num_stages(); stage-- > 0;) add(backward(stage, 0));
  return schedule;
}

void changes_of(const char* name, const Schedule& schedule, const LowerOptions& options) {
  const Programs programs = lower(schedule, options);
  Interleavings all(programs, false);
  CHECK(all.fate() == Fate::kRight);
  const Tally tally = judge_mutations(programs);
  std::printf("%s: %zu states; %d changes accepted, %d refused, of %d explored %d go wrong\n", name,
              all.num_states(), tally.num_accepted, tally.num_refused, tally.num_explored,
              tally.num_wrong);
  std::fflush(stdout);
  CHECK(tally.num_accepted > 0);
  CHECK(tally.num_wrong > 0);
}

}  // namespace
}  // namespace pipert

int main() {
  using namespace pipert;
  changes_of("1f1b", build("1f1b", 2, 3), {});
  changes_of("1f1b, 1 slot", build("1f1b", 2, 3), {.receive_slots = 1});
  changes_of("forward only", forward_only(build("gpipe", 2, 5)),
             {.receive_slots = 2, .send_slots = 1});
  changes_of("1f1b, 1 message on its way", build("1f1b", 2, 2), {.send_slots = 1});
  changes_of("zb_h1", build("zb_h1", 2, 2), {});
  changes_of("offload", with_offload(build("1f1b", 2, 2), {}), {});
  changes_of("joint pairs", of_pairs(), {.joint_pairs = true});
  changes_of("skip edges of three ranks", build("1f1b", 3, 1),
             {.stage_graph = make_stage_graph({{0, 2}}, {{2, 0}})});
  const StageGraph graph = make_stage_graph({{0, 2}, {0, 3}}, {{3, 1}, {2, 0}});
  changes_of("skip edges, looped", one_microbatch(Placement::loop(2, 4)), {.stage_graph = graph});
  changes_of("skip edges, V", one_microbatch(Placement::v_shaped(2, 4)),
             {.receive_slots = 1, .stage_graph = graph});
  changes_of("skip edges, forward only", forward_only(build("looped_bfs", 2, 2, 4)),
             {.receive_slots = 1, .send_slots = 1, .stage_graph = graph});
  changes_of("offload on one rank", with_offload(build("gpipe", 1, 3), {}), {});
}

// Programs of stages that read more than the chain gives them: they are right for every graph of up
// to five stages and every named schedule, each message reaches a rank once, and what is changed in
// what they read and keep is found and named.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "ir/routes.h"
#include "ir/schedule.h"
#include "plan/lower.h"
#include "plan/prove.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr int kMostStages = 5;

// All pairs of `num_stages` stages that are no neighbours, downwards.
std::vector<StagePair> skips(int num_stages) {
  std::vector<StagePair> pairs;
  for (StageIndex from = 0; from < num_stages; ++from) {
    for (StageIndex to = from + 2; to < num_stages; ++to) pairs.push_back({from, to});
  }
  return pairs;
}

std::vector<StagePair> chosen(const std::vector<StagePair>& pairs, unsigned bits) {
  std::vector<StagePair> result;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if ((bits >> i & 1U) != 0) result.push_back(pairs[i]);
  }
  return result;
}

std::vector<StagePair> turned(std::vector<StagePair> pairs) {
  for (StagePair& pair : pairs) std::swap(pair.from, pair.to);
  return pairs;
}

// One value for each stage that has readers: its gradient comes back from reader to reader.
StageGraph relayed(const std::vector<StagePair>& activations) {
  std::map<StageIndex, std::vector<StageIndex>> readers;
  for (const StagePair& pair : activations) readers[pair.from].push_back(pair.to);
  Routes routes;
  for (const auto& [maker, all] : readers) routes.values.push_back({maker, all, true, "value"});
  return stage_graph(routes);
}

// Every set of activations, with relays and without gradients; where there are few stages, with
// every set of gradients.
std::vector<StageGraph> graphs(int num_stages) {
  const auto pairs = skips(num_stages);
  const unsigned end = 1U << pairs.size();
  const unsigned step = num_stages < kMostStages ? 1 : end;
  std::vector<StageGraph> result;
  for (unsigned forward = 0; forward < end; ++forward) {
    const auto activations = chosen(pairs, forward);
    result.push_back(relayed(activations));
    for (unsigned back = 0; back < end; back += step)
      result.push_back(make_stage_graph(activations, turned(chosen(pairs, back))));
  }
  return result;
}

std::vector<Schedule> schedules() {
  std::vector<Schedule> result;
  for (const Generator* generator : generators()) {
    for (int num_ranks = 1; num_ranks <= kMostStages; ++num_ranks) {
      for (const int num_chunks : {0, 1, 2, 4}) {
        try {
          Schedule schedule = build_schedule(generator->name, {.num_ranks = num_ranks,
                                                               .num_microbatches = 2 * num_ranks,
                                                               .num_stages = num_chunks * num_ranks,
                                                               .options = {}});
          const int num_stages = schedule.placement.stages_per_copy();
          if (num_stages < 3 || num_stages > kMostStages) continue;
          lower(schedule);
          result.push_back(std::move(schedule));
        } catch (const ValueError&) {
          continue;  // sizes that it can't take, and updates
        }
      }
    }
  }
  return result;
}

using Programs = std::vector<Program>;
using Sent = std::pair<MessageKey, Edge>;

// Once to each rank, but the maker's own, that has a reader of it.
std::set<Sent> needed_messages(const Schedule& schedule, const StageGraph& graph) {
  const Placement& placement = schedule.placement;
  std::vector<StagePair> down = graph.activations;
  std::vector<StagePair> up = graph.gradients;
  for (StageIndex stage = 0; stage + 1 < placement.stages_per_copy(); ++stage) {
    down.push_back({stage, stage + 1});
    up.push_back({stage + 1, stage});
  }
  std::set<Sent> needed;
  const auto add = [&](const Action& maker, MessageKind kind, const std::vector<StagePair>& pairs) {
    const StageIndex own = maker.stage % placement.stages_per_copy();
    for (const auto& [from, to] : pairs) {
      if (from != own) continue;
      const Edge edge{placement.rank_of(maker.stage), placement.rank_of(maker.stage - own + to)};
      if (edge.source != edge.destination)
        needed.insert({{kind, maker.stage, maker.microbatch}, edge});
    }
  };
  const auto add_half = [&](const Action& action) {
    if (action.kind == ActionKind::kForward) add(action, MessageKind::kActivation, down);
    if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kInputGrad)
      add(action, MessageKind::kGradient, up);
  };
  for (const auto& actions : schedule.ranks) {
    for (const Action& action : actions) {
      const bool is_pair = action.kind == ActionKind::kOverlap;
      add_half(is_pair ? overlapped_forward(action) : action);
      if (is_pair) add_half(overlapped_backward(action));
    }
  }
  return needed;
}

void require_messages(const Programs& programs, const std::set<Sent>& needed) {
  std::set<Sent> sent;
  std::size_t num_sends = 0;
  for (const Program& program : programs) {
    for (const Instruction& instruction : program.instructions) {
      const auto* send = std::get_if<Send>(&instruction.op);
      if (send == nullptr) continue;
      ++num_sends;
      sent.insert({send->message, program.slots[as_index(send->slot)].edge});
    }
  }
  CHECK(num_sends == sent.size());
  CHECK(sent == needed);
}

Programs proved(const Schedule& schedule, const LowerOptions& options) {
  Programs programs = lower(schedule, options);
  const Proof proof = prove(programs);
  if (!proof.ok()) {
    std::fprintf(stderr, "%s, %s\n", schedule.name.c_str(), to_string(options.stage_graph).c_str());
    for (const Program& program : programs) std::fprintf(stderr, "%s", to_string(program).c_str());
    std::fprintf(stderr, "%s\n", proof.message.c_str());
  }
  CHECK(proof.ok() && proof.is_whole);
  return programs;
}

void programs_of_every_graph_and_named_schedule_are_proved_and_send_what_is_needed() {
  int num_proved = 0;
  for (const Schedule& schedule : schedules()) {
    const Schedule forward = forward_only(schedule);
    for (const StageGraph& graph : graphs(schedule.placement.stages_per_copy())) {
      require_messages(proved(schedule, {.stage_graph = graph}), needed_messages(schedule, graph));
      proved(schedule, {.receive_slots = 1, .joint_pairs = true, .stage_graph = graph});
      require_messages(proved(forward, {.receive_slots = 1, .send_slots = 1, .stage_graph = graph}),
                       needed_messages(forward, graph));
      num_proved += 3;
    }
  }
  CHECK(num_proved > 8'000);
}

// Two ranks with two stages each: rank 0 has 0 and 2, rank 1 has 1 and 3. Stage 1 keeps what stage
// 0 made for stage 3; stage 2 gets it within its rank, and gives stage 0 its gradient so.
Programs kept_on_two_ranks() {
  const Schedule schedule = build_schedule(
      "interleaved_1f1b", {.num_ranks = 2, .num_microbatches = 2, .num_stages = 4, .options = {}});
  return proved(schedule, {.stage_graph = make_stage_graph({{0, 2}, {0, 3}}, {{3, 1}, {2, 0}})});
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
  pipert::programs_of_every_graph_and_named_schedule_are_proved_and_send_what_is_needed();
}

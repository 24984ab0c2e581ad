// Programs of stages that read more than the chain gives them: they are right for every graph of up
// to five stages and every named schedule, and each message reaches a rank once.

#include <cstdio>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "analysis/simulate.h"
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

// A simulated step has the same messages.
void require_simulated_messages(const Schedule& schedule, const StageGraph& graph,
                                const std::set<Sent>& needed) {
  Costs costs;
  for (const auto* pairs : {&graph.activations, &graph.gradients}) {
    for (const auto& [from, to] : *pairs) costs.skips.push_back({from, {to}, 1.0});
  }
  CHECK(stage_graph(costs) == graph);
  const Timeline timeline = simulate(schedule, costs, Detail::kMessages);
  std::set<Sent> sent;
  for (const MessageSpan& message : timeline.messages) {
    const Action& maker = span_at(timeline, message.sender).action;
    sent.insert({{*result_kind(maker.kind), maker.stage, maker.microbatch},
                 {message.sender.rank, message.reader.rank}});
  }
  CHECK(timeline.messages.size() == sent.size());
  CHECK(sent == needed);
}

void programs_of_every_graph_and_named_schedule_are_proved_and_send_what_is_needed() {
  int num_proved = 0;
  for (const Schedule& schedule : schedules()) {
    const Schedule forward = forward_only(schedule);
    for (const StageGraph& graph : graphs(schedule.placement.stages_per_copy())) {
      const std::set<Sent> needed = needed_messages(schedule, graph);
      require_messages(proved(schedule, {.stage_graph = graph}), needed);
      require_simulated_messages(schedule, graph, needed);
      proved(schedule, {.receive_slots = 1, .joint_pairs = true, .stage_graph = graph});
      require_messages(proved(forward, {.receive_slots = 1, .send_slots = 1, .stage_graph = graph}),
                       needed_messages(forward, graph));
      num_proved += 3;
    }
  }
  CHECK(num_proved > 8'000);
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::programs_of_every_graph_and_named_schedule_are_proved_and_send_what_is_needed();
}

// Programs of stages that read more than the chain gives them: they are right for every graph of up
// to five stages and every named schedule, each value reaches a rank once, and what is changed in
// them is found.

#include <cstdio>
#include <map>
#include <set>
#include <string>
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
  for (const auto& [maker, all] : readers) routes.values.push_back({maker, all, true});
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

void require_proved(const Schedule& schedule, const LowerOptions& options) {
  const std::vector<Program> programs = lower(schedule, options);
  const Proof proof = prove(programs);
  if (!proof.ok()) {
    std::fprintf(stderr, "%s, %s\n", schedule.name.c_str(), to_string(options.stage_graph).c_str());
    for (const Program& program : programs) std::fprintf(stderr, "%s", to_string(program).c_str());
    std::fprintf(stderr, "%s\n", proof.message.c_str());
  }
  CHECK(proof.ok() && proof.is_whole);
}

void programs_of_every_graph_and_named_schedule_are_proved() {
  int num_proved = 0;
  for (const Schedule& schedule : schedules()) {
    const Schedule forward = forward_only(schedule);
    for (const StageGraph& graph : graphs(schedule.placement.stages_per_copy())) {
      require_proved(schedule, {.stage_graph = graph});
      require_proved(schedule, {.receive_slots = 1, .joint_pairs = true, .stage_graph = graph});
      require_proved(forward, {.receive_slots = 1, .send_slots = 1, .stage_graph = graph});
      num_proved += 3;
    }
  }
  CHECK(num_proved > 8'000);
}

}  // namespace
}  // namespace pipert

int main() { pipert::programs_of_every_graph_and_named_schedule_are_proved(); }

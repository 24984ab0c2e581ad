// verify and the drawings of its counterexamples take any schedule that can be parsed, or built.

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>

#include "analysis/render_counterexample.h"
#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr int kRounds = 20'000;
constexpr std::size_t kMostSvg = 200'000;

int pick(std::mt19937& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

template <typename Values>
auto& any_of(std::mt19937& random, Values& values) {
  return values[as_index(pick(random, 0, static_cast<int>(values.size()) - 1))];
}

// --- what a counterexample promises -------------------------------------------------------------

bool stands_at(const Schedule& schedule, const InvolvedPlace& involved) {
  const auto [rank, position] = involved.place;
  const auto& actions = schedule.ranks[as_index(rank)];
  if (position < 0 || as_index(position) >= actions.size()) return false;
  const Action& action = actions[as_index(position)];
  if (action == involved.action) return true;
  return action.kind == ActionKind::kOverlap && (overlapped_forward(action) == involved.action ||
                                                 overlapped_backward(action) == involved.action);
}

void check_cycle(const Counterexample& counterexample) {
  const auto& waits = counterexample.waits;
  CHECK(waits.size() >= 2);
  std::set<Rank> ranks;
  for (std::size_t i = 0; i < waits.size(); ++i) {
    const auto& next = counterexample.places[as_index(waits[(i + 1) % waits.size()].source)];
    const auto& target = counterexample.places[as_index(waits[i].target)];
    CHECK(target.place.rank == next.place.rank);
    CHECK(target.place.position >= next.place.position);  // it comes after what is stuck
    ranks.insert(next.place.rank);
  }
  CHECK(ranks.size() == waits.size());  // no rank twice
}

void check_verdict(const Schedule& schedule, const Verdict& verdict) {
  const Counterexample& counterexample = verdict.counterexample;
  CHECK(verdict.ok() == verdict.message.empty());
  CHECK(!verdict.ok() || counterexample.places.empty());
  for (const InvolvedPlace& involved : counterexample.places) {
    CHECK(involved.place.rank >= 0 && involved.place.rank < schedule.num_ranks());
    CHECK(involved.role == Role::kAbsent || stands_at(schedule, involved));
    CHECK(involved.place.position >= 0);
  }
  const auto num_places = static_cast<int>(counterexample.places.size());
  for (const PlaceWait& wait : counterexample.waits) {
    CHECK(wait.source >= 0 && wait.source < num_places);
    CHECK(wait.target >= 0 && wait.target < num_places);
  }
  if (verdict.defect == Defect::kDeadlock) check_cycle(counterexample);
  CHECK(counterexample.memory_limit.has_value() == (verdict.defect == Defect::kMemory));
  const std::string text = render_text(verdict);
  CHECK(text.find(verdict.ok() ? "ok" : verdict.message) == 0);
  const std::string svg = render_svg(verdict);
  CHECK(svg.size() < kMostSvg);
  CHECK(svg.find("nan") == std::string::npos && svg.find("inf") == std::string::npos);
}

// --- schedules ----------------------------------------------------------------------------------

Action random_action(std::mt19937& random, const Schedule& schedule) {
  const auto stage = [&] { return pick(random, -1, schedule.num_stages()); };
  const auto microbatch = [&] { return pick(random, -1, schedule.num_microbatches); };
  Action action{
      .kind = static_cast<ActionKind>(pick(random, 0, static_cast<int>(kNumActionKinds) - 1)),
      .stage = stage(),
      .microbatch = microbatch()};
  if (has_version(action.kind)) action.version = std::max(0, pick(random, -5, 2));
  if (has_microbatch(action.kind))
    action.slice = static_cast<Slice>(std::max(-1, pick(random, -9, 1)));
  if (action.kind != ActionKind::kOverlap) return action;
  action.paired_kind = static_cast<ActionKind>(pick(random, 0, 3));
  action.paired_stage = stage();
  action.paired_microbatch = microbatch();
  return action;
}

void mutate(std::mt19937& random, Schedule& schedule) {
  auto& actions = any_of(random, schedule.ranks);
  if (actions.empty()) return;
  const auto at = [&] {
    return actions.begin() + pick(random, 0, static_cast<int>(actions.size()) - 1);
  };
  const Action moved = *at();
  switch (pick(random, 0, 7)) {
    case 0:
      actions.erase(at());
      break;
    case 1:
      std::iter_swap(at(), at());
      break;
    case 2:
      *at() = random_action(random, schedule);
      break;
    case 3:
      actions.insert(at(), moved);
      break;
    case 4: {  // to another place, perhaps on another rank
      actions.erase(std::find(actions.begin(), actions.end(), moved));
      auto& other = any_of(random, schedule.ranks);
      other.insert(other.begin() + pick(random, 0, static_cast<int>(other.size())), moved);
      break;
    }
    case 5: {
      Action& action = *at();
      if (has_version(action.kind)) action.version = 1;
      break;
    }
    default: {
      const auto first = at();
      if (first + 1 != actions.end()) std::iter_swap(first, first + 1);
      break;
    }
  }
}

// Puts each stage's REDUCE_GRAD behind its last backward, or a little earlier or later.
void add_reductions(std::mt19937& random, Schedule& schedule) {
  for (StageIndex stage = 0; stage < schedule.num_stages(); ++stage) {
    if (pick(random, 0, 9) == 0) continue;
    auto& actions = schedule.ranks[as_index(schedule.placement.rank_of(stage))];
    const bool is_early = pick(random, 0, 19) == 0;
    const auto place = actions.end() - (is_early && !actions.empty() ? 1 : 0);
    actions.insert(place, {.kind = ActionKind::kReduceGrad, .stage = stage});
  }
}

Schedule base_schedule(std::mt19937& random) {
  const auto names = schedule_names();
  const int num_ranks = 2 * pick(random, 1, 2);
  const int num_microbatches = 2 * num_ranks;
  Schedule schedule = build_schedule(any_of(random, names), {.num_ranks = num_ranks,
                                                             .num_microbatches = num_microbatches,
                                                             .num_stages = 0,
                                                             .options = {}});
  if (pick(random, 0, 2) == 0) add_reductions(random, schedule);
  return schedule;
}

VerifyOptions random_options(std::mt19937& random, const Schedule& schedule) {
  VerifyOptions options;
  options.forward_only = pick(random, 0, 9) == 0;
  if (pick(random, 0, 1) == 0) options.capacity = pick(random, 0, 3);
  if (pick(random, 0, 3) == 0) options.memory_limit = {static_cast<double>(pick(random, 0, 8))};
  if (pick(random, 0, 1) == 0 && schedule.num_stages() > 2) {
    options.tied_stages = {{0, schedule.num_stages() - 1}};
    if (schedule.num_stages() > 3) options.tied_stages.push_back({1, 2});
  }
  return options;
}

void mutated_schedules_get_a_counterexample_that_fits() {
  std::mt19937 random(5);
  std::map<Defect, int> num_found;
  for (int round = 0; round < kRounds; ++round) {
    Schedule schedule = base_schedule(random);
    for (int i = pick(random, 0, 3); i > 0; --i) mutate(random, schedule);
    const Verdict verdict = verify(schedule, random_options(random, schedule));
    check_verdict(schedule, verdict);
    ++num_found[verdict.defect];
  }
  CHECK(num_found.size() == 10);  // every defect, and none
  for (const auto& [defect, count] : num_found) CHECK(count > 10);
}

std::string random_cell(std::mt19937& random) {
  constexpr std::string_view kinds[] = {"F",      "B",      "I",       "W",       "SEND_F",
                                        "RECV_F", "SEND_B", "RECV_B",  "R",       "OFFLOAD",
                                        "RELOAD", "UPDATE", "UNSHARD", "RESHARD", "REDUCE_GRAD"};
  const auto number = [&] {
    return pick(random, 0, 19) == 0 ? std::string("999999999") : std::to_string(pick(random, 0, 3));
  };
  const int which = pick(random, 0, 16);
  if (which == 16) return {};
  if (which == 15) {
    return concat("(", number(), "F", number(), ";", number(), "B", number(), ")OVERLAP_F_B");
  }
  std::string cell = concat(number(), kinds[which]);
  if (which < 11) cell += number();
  if (which < 11 && pick(random, 0, 5) == 0) cell += concat("s", pick(random, 0, 2));
  if (which == 11 || (which < 4 && pick(random, 0, 5) == 0))
    cell += concat("v", pick(random, 0, 2));
  return cell;
}

// Anything that the parser lets through, however odd: empty ranks, indices up to the largest.
void whatever_can_be_parsed_gets_a_verdict() {
  std::mt19937 random(6);
  int num_parsed = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::string csv;
    for (int rank = pick(random, 1, 3); rank > 0; --rank) {
      for (int i = pick(random, 1, 6); i > 0; --i) csv += random_cell(random) + ",";
      csv.back() = '\n';
    }
    try {
      const Schedule schedule = parse_csv(csv);
      check_verdict(schedule, verify(schedule, random_options(random, schedule)));
      ++num_parsed;
    } catch (const ValueError&) {  // no such schedule, or tied stages that it hasn't
    }
  }
  CHECK(num_parsed > kRounds / 50);
}

// --- large ones ---------------------------------------------------------------------------------

Schedule ring(int num_ranks) {
  Schedule schedule{.name = "ring",
                    .num_microbatches = 1,
                    .placement = Placement::loop(num_ranks, 2 * num_ranks),
                    .ranks = {}};
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    schedule.ranks.push_back({forward(num_ranks + rank, 0), forward(rank, 0)});
  }
  return schedule;
}

void a_cycle_of_many_ranks_is_told_in_full_and_drawn_in_part() {
  const Schedule schedule = ring(5000);
  VerifyOptions forwards;
  forwards.forward_only = true;
  const Verdict verdict = verify(schedule, forwards);
  CHECK(verdict.defect == Defect::kDeadlock);
  CHECK(verdict.counterexample.waits.size() == 5000);
  check_verdict(schedule, verdict);
  CHECK(render_svg(verdict).find("4984 more ranks are not shown") != std::string::npos);
}

void thousands_of_empty_ranks_and_huge_sizes_are_told_at_once() {
  Schedule schedule{.name = "",
                    .num_microbatches = kMaxIndex,
                    .placement = Placement::loop(20'000, 20'000),
                    .ranks = std::vector<std::vector<Action>>(20'000)};
  check_verdict(schedule, verify(schedule));
  CHECK(verify(schedule).message == "0F0 is missing on rank 0");
  schedule.ranks[3].push_back(forward(kMaxIndex, kMaxIndex));
  check_verdict(schedule, verify(schedule));
  schedule.ranks[3] = {forward(3, kMaxIndex - 1)};
  CHECK(verify(schedule).defect == Defect::kMissing);
  schedule.ranks.pop_back();
  CHECK(verify(schedule).defect == Defect::kMalformed);
  check_verdict(schedule, verify(schedule));
}

// All stages share their weights, and each rank comes to its part before the next can.
void a_collective_of_thousands_of_ranks_is_one_pass() {
  constexpr int kRanks = 3000;
  Schedule schedule = build_schedule(
      "gpipe", {.num_ranks = kRanks, .num_microbatches = 1, .num_stages = 0, .options = {}});
  std::vector<StageIndex> all;
  for (StageIndex stage = 0; stage < kRanks; ++stage) {
    schedule.ranks[as_index(stage)].push_back({.kind = ActionKind::kReduceGrad, .stage = stage});
    all.push_back(stage);
  }
  VerifyOptions options;
  options.tied_stages = {all};
  CHECK(verify(schedule, options).ok());
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::mutated_schedules_get_a_counterexample_that_fits();
  pipert::whatever_can_be_parsed_gets_a_verdict();
  pipert::a_cycle_of_many_ranks_is_told_in_full_and_drawn_in_part();
  pipert::thousands_of_empty_ranks_and_huge_sizes_are_told_at_once();
  pipert::a_collective_of_thousands_of_ranks_is_one_pass();
}

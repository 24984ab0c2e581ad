// The analysis floor: verify, simulate and render take any schedule, however wrong.

#include <algorithm>
#include <random>
#include <string_view>

#include "analysis/gaps.h"
#include "analysis/render.h"
#include "analysis/simulate.h"
#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "check.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr int kRounds = 20'000;

int pick(std::mt19937& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

Action random_action(std::mt19937& random, const Schedule& schedule) {
  const int num_stages = schedule.num_stages();
  return {.kind = static_cast<ActionKind>(pick(random, 0, static_cast<int>(kNumActionKinds) - 1)),
          .paired_kind = static_cast<ActionKind>(pick(random, 0, 3)),
          .slice = static_cast<Slice>(pick(random, -2, 1)),
          .stage = pick(random, -1, num_stages),
          .microbatch = pick(random, -1, schedule.num_microbatches),
          .version = pick(random, -1, 1),
          .paired_stage = pick(random, -1, num_stages),
          .paired_microbatch = pick(random, -1, schedule.num_microbatches)};
}

void mutate(std::mt19937& random, Schedule& schedule) {
  auto& actions = schedule.ranks[as_index(pick(random, 0, schedule.num_ranks() - 1))];
  if (actions.empty()) return;
  const int last = static_cast<int>(actions.size()) - 1;
  const auto at = [&] { return actions.begin() + pick(random, 0, last); };
  switch (pick(random, 0, 3)) {
    case 0:
      actions.erase(at());
      break;
    case 1:
      std::iter_swap(at(), at());
      break;
    case 2:
      *at() = random_action(random, schedule);
      break;
    default:
      actions.insert(at(), random_action(random, schedule));
      break;
  }
}

Schedule base_schedule(std::mt19937& random) {
  constexpr std::string_view kLowered =
      "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0I0,0W0,0RECV_B1,0B1,0REDUCE_GRAD,0RESHARD\n"
      "1RECV_F0,1F0,1RECV_F1,(1F1;1B0)OVERLAP_F_B,1SEND_B0,1B1,1SEND_B1\n";
  const auto names = schedule_names();
  const int which = pick(random, 0, static_cast<int>(names.size()));
  if (which == static_cast<int>(names.size())) return parse_csv(kLowered);
  return build_schedule(names[as_index(which)],
                        {.num_ranks = 2, .num_microbatches = 4, .num_stages = 0, .options = {}});
}

// Any of those that are in range: an activation or a gradient, to one stage or all on that side.
std::vector<SkipCost> random_skips(std::mt19937& random, int num_stages) {
  std::vector<SkipCost> skips;
  for (int i = pick(random, 0, 3); i > 0; --i) {
    const StageIndex from = pick(random, 0, num_stages - 1);
    const bool down = pick(random, 0, 1) == 0;
    std::vector<StageIndex> to;
    const StageIndex nearest = pick(random, 1, num_stages);
    for (StageIndex stage = down ? from + nearest : from - nearest;
         stage >= 0 && stage < num_stages; stage += down ? 1 : -1)
      to.push_back(stage);
    if (!to.empty()) skips.push_back({from, to, 1.0 * pick(random, 0, 3)});
  }
  return skips;
}

Costs random_costs(std::mt19937& random, int num_ranks) {
  Costs costs;
  costs.forward = {1.0 + pick(random, 0, 2)};
  costs.update = {1.0 * pick(random, 0, 1)};
  costs.reduce = {1.0 * pick(random, 0, 1)};
  costs.offload = costs.reload = costs.unshard = {0.5 * pick(random, 0, 1)};
  costs.latency = 0.5 * pick(random, 0, 2);
  costs.bandwidth = EdgeCost(pick(random, 0, 2), {{{0, 1}, 0.5}});
  costs.bytes = {1.0 * pick(random, 0, 3)};
  costs.activation_bytes = {1000.0};
  if (pick(random, 0, 1) == 0) {
    auto& link = costs.links.emplace_back();
    for (Rank rank = 0; rank < num_ranks; ++rank) link.push_back({rank, (rank + 1) % num_ranks});
  }
  return costs;
}

// With its spans a rank's gaps leave no hole in the makespan.
void check_gaps(const Timeline& timeline) {
  const auto gaps = gaps_of(timeline);
  for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
    double time = 0.0;
    auto gap = gaps[rank].begin();
    const auto pass_gaps = [&] {
      for (; gap != gaps[rank].end() && gap->start == time; ++gap) {
        CHECK(gap->end > gap->start);
        CHECK(gap->reason != GapReason::kUnknown);
        CHECK(!to_string(*gap).empty());
        time = gap->end;
      }
    };
    for (const Span& span : timeline.ranks[rank]) {
      pass_gaps();
      CHECK(span.start == time);
      time = span.end;
    }
    pass_gaps();
    CHECK(gap == gaps[rank].end());
    CHECK(time == timeline.makespan);
  }
}

void check_simulation(const Schedule& schedule, std::mt19937& random) {
  Costs costs = random_costs(random, schedule.num_ranks());
  costs.skips = random_skips(random, schedule.placement.stages_per_copy());
  check_gaps(simulate(schedule, costs, Detail::kMessages));
  costs.blocking = true;
  VerifyOptions rendezvous;
  rendezvous.forward_only = is_forward_only(schedule);
  rendezvous.send_mode = SendMode::kRendezvous;
  try {
    check_gaps(simulate(schedule, costs, Detail::kMessages));
  } catch (const ValueError&) {
    CHECK(!costs.skips.empty() || !verify(schedule, rendezvous).ok());
  }
}

// Whatever the schedule: a verdict with a message, or one that the other passes agree with.
void check_all(const Schedule& schedule, const VerifyOptions& options, std::mt19937& random) {
  const Verdict verdict = verify(schedule, options);
  CHECK(verdict.ok() == verdict.message.empty());
  if (options.forward_only) return;
  VerifyOptions unbounded;
  unbounded.forward_only = is_forward_only(schedule);
  if (verify(schedule, unbounded).ok()) {
    const Timeline timeline = simulate(schedule, {});
    CHECK(!timeline.critical_path.empty());
    CHECK(!render_text(timeline).empty());
    CHECK(!render_svg({{"fuzz", timeline}}, {.transfers = true}).empty());
    check_simulation(schedule, random);
  } else {
    CHECK(!verdict.ok());
    CHECK_THROWS(simulate(schedule, {}), ValueError);
  }
}

void mutated_schedules_get_a_verdict() {
  std::mt19937 random(3);
  for (int round = 0; round < kRounds; ++round) {
    Schedule schedule = base_schedule(random);
    for (int i = pick(random, 0, 3); i > 0; --i) mutate(random, schedule);
    VerifyOptions options;
    options.forward_only = pick(random, 0, 4) == 0;
    if (pick(random, 0, 1) == 0) options.capacity = pick(random, 0, 3);
    check_all(schedule, options, random);
  }
}

void the_sample_schedules_are_good() {
  std::mt19937 random(4);
  for (int round = 0; round < 20; ++round) require_valid(base_schedule(random));
}

// However short or long the times, and however many the actions.
void times_of_any_size_are_drawn() {
  for (const double time : {5e-324, 1e-310, 1e-200, 1.0, 1e200, 1e307}) {
    for (const int num_actions : {2, 1500}) {
      std::vector<Span> spans;
      for (int i = 0; i < num_actions; ++i) {
        const double start = time * (i % 2);
        spans.push_back({.action = forward(0, i), .start = start, .end = start + time});
      }
      const Timeline timeline = make_timeline({spans});
      const std::string svg = render_svg({{"", timeline}});
      CHECK(svg.find("nan") == std::string::npos);
      CHECK(svg.find("inf") == std::string::npos);
      CHECK(render_text(timeline).find("rank 0 |") != std::string::npos);
    }
  }
}

void a_picture_has_bounded_size() {
  constexpr std::size_t kMost = 10'000'000;
  const auto drawn = [](int num_ranks, int num_microbatches) {
    std::vector<std::vector<Span>> ranks(as_index(num_ranks));
    for (auto& spans : ranks) {
      for (int i = 0; i < num_microbatches; ++i) {
        spans.push_back({.action = forward(0, i), .start = 2.0 * i, .end = 2.0 * i + 1.0});
      }
    }
    return render_svg({{"", make_timeline(std::move(ranks))}}).size();
  };
  CHECK(drawn(20, 1000) < kMost);  // the most that is drawn as boxes
  CHECK(drawn(400, 5000) < kMost);
  CHECK(drawn(4096, 200) < kMost);
  CHECK_THROWS(drawn(4097, 0), ValueError);
}

void a_thousand_ranks_are_simulated() {
  const Schedule schedule = build_schedule(
      "1f1b", {.num_ranks = 1000, .num_microbatches = 20, .num_stages = 0, .options = {}});
  CHECK(simulate(schedule, {}).makespan == 3.0 * (20 + 1000 - 1));
}

}  // namespace
}  // namespace pipert

int main() {
  pipert::the_sample_schedules_are_good();
  pipert::mutated_schedules_get_a_verdict();
  pipert::times_of_any_size_are_drawn();
  pipert::a_picture_has_bounded_size();
  pipert::a_thousand_ranks_are_simulated();
}

#include "search/seeds.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "schedule/registry.h"
#include "search/options.h"

namespace pipert {
namespace {

using Options = std::map<std::string, std::int64_t>;

VerifyOptions options_of(const MemoryCap& cap) {
  return {.memory_limit = cap.limit,
          .activation_size = cap.activation_size,
          .weight_share = cap.weight_share};
}

bool has_plain_actions(const Schedule& schedule) {
  const auto plain = [](const Action& action) {
    return action.kind == ActionKind::kForward || action.kind == ActionKind::kBackward ||
           action.kind == ActionKind::kInputGrad || action.kind == ActionKind::kWeightGrad;
  };
  return std::all_of(schedule.ranks.begin(), schedule.ranks.end(), [&](const auto& actions) {
    return std::all_of(actions.begin(), actions.end(), plain);
  });
}

std::optional<Schedule> build(const Generator& generator, const SearchRequest& request,
                              const Options& options) {
  const Placement& any = request.placements.front();
  const ScheduleRequest sizes{.num_ranks = any.num_ranks(),
                              .num_microbatches = request.num_microbatches,
                              .num_stages = any.num_stages(),
                              .options = options};
  try {
    return split_overlaps(build_schedule(generator.name, sizes));
  } catch (const ValueError&) {
    return std::nullopt;  // not for these sizes
  }
}

bool is_better(const Seed& a, const Seed& b) { return a.value < b.value; }

bool is_wanted(const Placement& placement, const SearchRequest& request) {
  const auto& wanted = request.placements;
  return std::find(wanted.begin(), wanted.end(), placement) != wanted.end();
}

std::optional<Seed> seed_of(Schedule schedule, const SearchRequest& request) {
  std::optional<Timeline> timeline = timeline_under(request.costs, schedule);
  if (!timeline) return std::nullopt;
  const double value = value_of(*timeline, request.objective);
  return Seed{std::move(schedule), {}, *std::move(timeline), value};
}

// Why a schedule of the caller's can't be a seed; empty if it can.
std::string reason_against(const Schedule& schedule, const SearchRequest& request) {
  if (schedule.num_microbatches != request.num_microbatches) {
    return concat("expected ", request.num_microbatches, " microbatches, got ",
                  schedule.num_microbatches);
  }
  if (!is_wanted(schedule.placement, request)) return "its placement is none of the placements";
  if (!has_plain_actions(schedule) || schedule.num_slices != 1) {
    return "expected F, B, I and W of whole sequences alone";
  }
  return verify(schedule, options_of(request.cap)).message;
}

std::vector<Seed> given_seeds(const SearchRequest& request) {
  std::vector<Seed> seeds;
  for (const Schedule& given : request.seeds) {
    Schedule schedule = split_overlaps(given);
    if (const std::string reason = reason_against(schedule, request); !reason.empty()) {
      throw ValueError(concat("seed '", schedule.name, "': ", reason));
    }
    std::optional<Seed> seed = seed_of(std::move(schedule), request);
    if (!seed) {
      throw ValueError(
          concat("seed '", given.name, "': it deadlocks where transfers hold up their ranks"));
    }
    seeds.push_back(*std::move(seed));
  }
  return seeds;
}

// Group sizes other than the default, from num_ranks to num_microbatches; of many, some.
std::vector<Options> group_sizes(const Generator& generator, const SearchRequest& request) {
  constexpr int most = 24;
  std::vector<Options> options;
  if (std::find(generator.options.begin(), generator.options.end(), "group_size") ==
      generator.options.end()) {
    return options;
  }
  const int least = request.placements.front().num_ranks() + 1;
  const int step = std::max(1, (request.num_microbatches - least) / most);
  for (int size = request.num_microbatches; size >= least; size -= step) {
    options.push_back({{"group_size", size}});
  }
  return options;
}

std::vector<Options> variants_of(const Generator& generator, const SearchRequest& request) {
  std::vector<Options> variants = group_sizes(generator, request);
  const Options options = options_for(generator, request.costs, request.cap);
  if (!options.empty()) variants.push_back(options);
  variants.push_back({});
  return variants;
}

std::vector<Seed> named_seeds(const SearchRequest& request, const std::function<bool()>& stop) {
  std::vector<Seed> seeds;
  const auto add = [&](const Generator& generator, const Options& options) {
    std::optional<Schedule> schedule = build(generator, request, options);
    if (!schedule || !has_plain_actions(*schedule)) return;
    if (!is_wanted(schedule->placement, request)) return;
    if (!verify(*schedule, options_of(request.cap)).ok()) return;
    std::optional<Seed> seed = seed_of(*std::move(schedule), request);
    if (!seed) return;
    seed->options = options;
    seeds.push_back(*std::move(seed));
  };
  for (const Generator* generator : generators()) {
    for (const Options& options : variants_of(*generator, request)) {
      if (stop && stop()) break;
      add(*generator, options);
    }
  }
  std::stable_sort(seeds.begin(), seeds.end(), is_better);
  std::vector<Seed> best;  // of each name
  for (Seed& seed : seeds) {
    const bool is_known = std::any_of(best.begin(), best.end(), [&](const Seed& other) {
      return other.schedule.name == seed.schedule.name;
    });
    if (!is_known) best.push_back(std::move(seed));
  }
  return best;
}

}  // namespace

std::optional<Timeline> timeline_under(const Costs& costs, const Schedule& schedule) {
  require_costs(costs, schedule);
  try {
    return simulate(schedule, costs);
  } catch (const ValueError&) {
    return std::nullopt;  // it deadlocks
  }
}

double value_of(const Timeline& timeline, Objective objective) {
  switch (objective) {
    case Objective::kMakespan:
      return timeline.makespan;
    case Objective::kSpan:
      return *std::max_element(timeline.spans.begin(), timeline.spans.end());
  }
  return 0.0;
}

std::vector<Seed> all_seeds(const SearchRequest& request, const std::function<bool()>& stop) {
  std::vector<Seed> seeds = given_seeds(request);
  for (Seed& seed : named_seeds(request, stop)) seeds.push_back(std::move(seed));
  std::stable_sort(seeds.begin(), seeds.end(), is_better);
  return seeds;
}

}  // namespace pipert

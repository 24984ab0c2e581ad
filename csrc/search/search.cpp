#include "search/search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include "analysis/resolve_costs.h"
#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"
#include "schedule/registry.h"
#include "search/rounds.h"
#include "search/rules.h"
#include "search/seeds.h"

namespace pipert {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNumWalks = 4;  // of each placement, whatever the machine, for the same answer
constexpr double kRounding = 1e-12;

void require_placements(const SearchRequest& request) {
  if (request.placements.empty()) throw ValueError("placements must be at least one, got none");
  const Placement& first = request.placements.front();
  for (const Placement& placement : request.placements) {
    if (placement.num_copies() != 1) {
      throw ValueError(concat("placements must have one copy of the model, got ",
                              placement.num_copies(), " copies"));
    }
    if (placement.num_ranks() != first.num_ranks() ||
        placement.num_stages() != first.num_stages()) {
      throw ValueError(concat("placements must have the same ranks and stages, got ",
                              first.num_ranks(), " ranks and ", first.num_stages(), " stages, and ",
                              placement.num_ranks(), " ranks and ", placement.num_stages(),
                              " stages"));
    }
  }
}

Workload workload_of(const SearchRequest& request, const Placement& placement) {
  const double none = std::numeric_limits<double>::infinity();
  const auto limit = request.cap.limit.empty() ? std::vector<double>{none} : request.cap.limit;
  return {.placement = placement,
          .num_microbatches = request.num_microbatches,
          .times = resolve_costs(request.costs, placement),
          .room = {.limit = spread(limit, placement.num_ranks()),
                   .size = spread(request.cap.activation_size, placement.num_stages()),
                   .weight_share = request.cap.weight_share}};
}

// Each microbatch there and back before the next: slow, within any limit, and it never deadlocks.
Schedule one_at_a_time(const Placement& placement, int num_microbatches) {
  Schedule schedule{.name = "one at a time",
                    .num_microbatches = num_microbatches,
                    .placement = placement,
                    .ranks = {}};
  schedule.ranks.resize(as_index(placement.num_ranks()));
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    const auto stages = placement.stages_of(rank);
    auto& actions = schedule.ranks[as_index(rank)];
    for (Microbatch m = 0; m < num_microbatches; ++m) {
      for (const StageIndex stage : stages) actions.push_back(forward(stage, m));
      for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
        actions.push_back(backward(*stage, m));
      }
    }
  }
  return schedule;
}

class Search {
 public:
  Search(const SearchRequest& request, const std::function<bool()>& stop)
      : request_(request), stop_(stop) {}

  SearchResult run() {
    for (const Placement& placement : request_.placements) lower_bound_of(placement);
    seeds_ = all_seeds(request_, stop_);
    for (const Seed& seed : seeds_) {
      result_.seeds.push_back({.source = seed.schedule.name, .value = seed.value});
    }
    for (std::size_t i = 0; i < request_.placements.size(); ++i) add_field(i);
    result_.iterations = run_rounds(fields_, limits());
    choose();
    result_.seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    return std::move(result_);
  }

 private:
  void lower_bound_of(const Placement& placement) {
    const Bounds bounds =
        lower_bounds(placement, request_.num_microbatches, request_.costs, request_.cap);
    const bool is_first = bounds_.empty();
    if (is_first || bounds.span.value < result_.bounds.span.value)
      result_.bounds.span = bounds.span;
    if (is_first || bounds.makespan.value < result_.bounds.makespan.value)
      result_.bounds.makespan = bounds.makespan;
    bounds_.push_back(value_of(bounds));
    result_.bound = value_of(result_.bounds);
  }

  double value_of(const Bounds& bounds) const {
    return request_.objective == Objective::kSpan ? bounds.span.value : bounds.makespan.value;
  }

  void add_field(std::size_t index) {
    auto field = std::make_unique<Field>();
    field->workload = workload_of(request_, request_.placements[index]);
    field->bound = bounds_[index];
    field->rules = all_rules(field->workload);
    // One walk that goes on for long finds more than many short ones. Each has rules of its own to
    // begin with.
    const int num_walks = request_.iterations
                              ? kNumWalks
                              : std::clamp(num_threads(), 2, static_cast<int>(field->rules.size()));
    for (int i = 0; i < num_walks; ++i) {
      const std::uint64_t seed = Random(request_.seed + 0x1000 * index + as_index(i)).next();
      field->walks.emplace_back(field->workload, request_.objective, field->bound, seed);
    }
    std::size_t next = 0;
    for (const Seed& seed : seeds_) {
      if (seed.schedule.placement != field->workload.placement) continue;
      const auto order = lane_order_of(seed.schedule);
      if (order) field->walks[next++ % field->walks.size()].offer(*order);
    }
    fields_.push_back(std::move(field));
  }

  int num_threads() const {
    if (request_.num_threads > 0) return request_.num_threads;
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  RoundLimits limits() const {
    RoundLimits limits;
    if (const auto seconds = time_limit_of(request_)) {
      limits.deadline = begin_ + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(*seconds));
    }
    limits.tries = request_.iterations;
    limits.num_threads = num_threads();
    limits.stop = stop_;
    return limits;
  }

  // By simulate(), whose word counts: it knows of links that are shared and transfers that block. A
  // named schedule goes before one that is no better.
  void choose() {
    result_.value = std::numeric_limits<double>::infinity();
    if (!seeds_.empty()) {
      Seed& best = seeds_.front();
      result_.value = best.value;
      result_.source = best.schedule.name;
      result_.options = std::move(best.options);
      result_.schedule = std::move(best.schedule);
      result_.timeline = std::move(best.timeline);
    }
    for (const auto& field : fields_) {
      for (const Walk& walk : field->walks) consider(*field, walk);
    }
    // Where transfers hold up their ranks, all of these may deadlock.
    if (result_.schedule.ranks.empty()) {
      take(one_at_a_time(request_.placements.front(), request_.num_microbatches));
    }
  }

  void consider(const Field& field, const Walk& walk) {
    if (walk.best_value() >= result_.value * (1.0 - kRounding)) return;
    Schedule schedule = to_schedule(walk.best(), field.workload, "search");
    if (take(std::move(schedule))) {
      result_.source = walk.best_is_by_steps() ? "local search" : "list scheduling";
    }
  }

  // Whether it is better than what there is, which it then replaces.
  bool take(Schedule schedule) {
    std::optional<Timeline> timeline = timeline_under(request_.costs, schedule);
    if (!timeline) return false;
    const double value = pipert::value_of(*timeline, request_.objective);
    if (value >= result_.value * (1.0 - kRounding)) return false;
    result_.value = value;
    result_.source = schedule.name;
    result_.options.clear();
    result_.schedule = std::move(schedule);
    result_.timeline = *std::move(timeline);
    return true;
  }

  const SearchRequest& request_;
  const std::function<bool()>& stop_;
  Clock::time_point begin_ = Clock::now();
  std::vector<double> bounds_;  // by placement
  std::vector<Seed> seeds_;
  std::vector<std::unique_ptr<Field>> fields_;
  SearchResult result_;
};

}  // namespace

void require_search_limits(const SearchRequest& request) {
  if (request.num_microbatches < 1) {
    throw ValueError(concat("num_microbatches must be at least 1, got ", request.num_microbatches));
  }
  require_feasible(request.placements.front().num_stages(), request.num_microbatches);
  if (request.time_limit && !(*request.time_limit >= 0.0)) {
    throw ValueError(concat("time_limit must be at least 0, got ", *request.time_limit));
  }
  if (request.iterations && *request.iterations < 0) {
    throw ValueError(concat("iterations must be at least 0, got ", *request.iterations));
  }
}

std::optional<double> time_limit_of(const SearchRequest& request) {
  constexpr double longest = 1e8;  // seconds that the clock can still count
  if (!request.time_limit && request.iterations) return std::nullopt;
  const double seconds = request.time_limit.value_or(kTimeLimit);
  return seconds < longest ? std::optional(seconds) : std::nullopt;
}

SearchResult search(const SearchRequest& request, const std::function<bool()>& stop) {
  require_placements(request);
  require_search_limits(request);
  return Search(request, stop).run();
}

}  // namespace pipert

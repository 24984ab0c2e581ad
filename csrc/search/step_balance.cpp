#include "search/step_balance.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <utility>

#include "analysis/simulate.h"
#include "base/error.h"
#include "search/loads.h"
#include "search/random.h"

namespace pipert {
namespace {

constexpr std::int64_t kMostSimulations = 1000;
constexpr std::int64_t kMostActions = 2'000'000;
constexpr int kShakes = 30;

std::int64_t simulations_for(const Schedule& schedule) {
  std::int64_t num_actions = 1;
  for (const auto& actions : schedule.ranks) {
    num_actions += static_cast<std::int64_t>(actions.size());
  }
  return std::min(kMostSimulations, kMostActions / num_actions + 1);
}

class StepSearch {
 public:
  StepSearch(const Loads& loads, const Costs& layers, const Schedule& schedule)
      : loads_(loads), layers_(layers), schedule_(schedule), left_(simulations_for(schedule)) {}

  // Moves layers, the shortest moves first, as long as the step ends sooner.
  void climb_from(Cuts cuts) {
    double end = end_of(cuts);
    const auto num_stages = static_cast<int>(cuts.size());
    for (int distance = 1; distance < num_stages;) {
      bool improved = false;
      for (int from = 0; from < num_stages; ++from) {
        for (const int to : {from - distance, from + distance}) {
          if (to < 0 || to >= num_stages) continue;
          Cuts moved = with_layer_moved(cuts, from, to);
          const double ends = end_of(moved);
          if (ends >= end) continue;
          end = ends;
          cuts = std::move(moved);
          improved = true;
        }
      }
      distance = improved ? 1 : distance + 1;
    }
    if (end >= best_end_) return;
    best_end_ = end;
    best_ = std::move(cuts);
  }

  // The best cuts with some layers moved at random, to leave where no single move helps.
  Cuts shaken() {
    const auto num_stages = static_cast<int>(best_.size());
    Cuts cuts = best_;
    for (int moves = 2 + random_.below(2); moves > 0; --moves) {
      Cuts moved = with_layer_moved(cuts, random_.below(num_stages), random_.below(num_stages));
      if (!moved.empty()) cuts = std::move(moved);
    }
    return cuts;
  }

  const Cuts& best() const { return best_; }

 private:
  // Infinite for cuts that don't keep the limits, and once all simulations are used up.
  double end_of(const Cuts& cuts) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    if (cuts.empty() || loads_.load_of(cuts).excess > 0.0) return kNever;
    const auto [known, is_new] = ends_.try_emplace(cuts, kNever);
    if (!is_new || left_ <= 0) return known->second;
    --left_;
    known->second = simulate(schedule_, stage_costs(layers_, cuts)).makespan;
    return known->second;
  }

  const Loads& loads_;
  const Costs& layers_;
  const Schedule& schedule_;
  std::int64_t left_;
  Random random_{1};
  std::map<Cuts, double> ends_;
  Cuts best_;
  double best_end_ = std::numeric_limits<double>::infinity();
};

}  // namespace

Balance step_balance(const BalanceRequest& request, const Costs& layers, const Schedule& schedule) {
  if (schedule.placement != request.placement) {
    throw ValueError("schedule must have the placement that is given, got another one");
  }
  require_times(layers, request.work.num_layers(), "num_layers");
  Balance result = balance(request);
  if (request.placement.num_copies() > 1) return result;
  const Loads loads(request.work, request.held, request.limit, request.placement);
  StepSearch search(loads, layers, schedule);
  const Cuts by_stage = loads.balanced_stages();
  for (const Cuts& start :
       {result.cuts, by_stage, loads.balanced_ranks(by_stage),
        even_cuts(request.work.num_layers(), request.placement.stages_per_copy())}) {
    search.climb_from(start);
  }
  for (int shakes = 0; shakes < kShakes; ++shakes) search.climb_from(search.shaken());
  result.cuts = search.best();
  result.work = loads.work_by_rank(result.cuts);
  result.held = loads.held_by_rank(result.cuts);
  result.longest = *std::max_element(result.work.begin(), result.work.end());
  return result;
}

}  // namespace pipert

#include "search/loads.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>

#include "base/index.h"
#include "base/one_or_each.h"

namespace pipert {
namespace {

constexpr double kRounding = 1.0 + 1e-9;

// Sums that differ by rounding alone are the same, or layers would move for ever.
double rounded(double value) { return static_cast<double>(static_cast<float>(value)); }

}  // namespace

Loads::Loads(Measure work, Measure held, std::vector<double> limit, const Placement& placement)
    : work_(std::move(work)),
      held_(std::move(held)),
      limit_(limit.empty() ? limit : spread(limit, placement.num_ranks())),
      placement_(placement) {}

Cuts Loads::balanced_stages(Limits limits) const {
  const int num_stages = placement_.stages_per_copy();
  const int num_layers = work_.num_layers();
  // longest[end]: of the first `end` layers cut into the stages so far; begins[stage][end]: where
  // the last of these stages begins.
  const std::vector<double> none(as_index(num_layers) + 1, std::numeric_limits<double>::infinity());
  std::vector<double> longest = none;
  longest[0] = 0.0;
  std::vector<std::vector<int>> begins;
  for (StageIndex stage = 0; stage < num_stages; ++stage) {
    std::vector<double> next = none;
    auto& begin_of = begins.emplace_back(as_index(num_layers) + 1, 0);
    for (int end = stage + 1; end <= num_layers; ++end) {
      for (int begin = stage; begin < end; ++begin) {
        const double value = std::max(longest[as_index(begin)], work_.of(stage, begin, end));
        if (value >= next[as_index(end)]) continue;
        if (limits == Limits::kOfStages && !fits(stage, begin, end)) continue;
        next[as_index(end)] = value;
        begin_of[as_index(end)] = begin;
      }
    }
    longest = std::move(next);
  }
  if (longest.back() == none.front()) return {};
  Cuts cuts(as_index(num_stages));
  for (int stage = num_stages, end = num_layers; stage-- > 0;) {
    const int begin = begins[as_index(stage)][as_index(end)];
    cuts[as_index(stage)] = end - begin;
    end = begin;
  }
  return cuts;
}

Cuts Loads::balanced_ranks(Cuts cuts) const {
  const auto num_stages = static_cast<int>(cuts.size());
  Load least = load_of(cuts);
  for (bool improved = true; improved;) {
    improved = false;
    for (int from = 0; from < num_stages; ++from) {
      for (int to = 0; to < num_stages; ++to) {
        if (from == to) continue;
        Cuts moved = with_layer_moved(cuts, from, to);
        if (moved.empty()) continue;
        const Load load = load_of(moved);
        if (load >= least) continue;
        least = load;
        cuts = std::move(moved);
        improved = true;
      }
    }
  }
  return cuts;
}

Load Loads::load_of(const Cuts& cuts) const {
  const std::vector<double> work = work_by_rank(cuts);
  Load load{.longest = rounded(*std::max_element(work.begin(), work.end()))};
  int begin = 0;
  for (std::size_t stage = 0; stage < cuts.size(); ++stage) {
    const int end = begin + cuts[stage];
    const double of_stage = work_.of(static_cast<StageIndex>(stage), begin, end);
    load.roughness += of_stage * of_stage;
    begin = end;
  }
  load.roughness = rounded(load.roughness);
  if (limit_.empty()) return load;
  const std::vector<double> held = held_by_rank(cuts);
  for (std::size_t rank = 0; rank < held.size(); ++rank) {
    load.excess += std::max(0.0, held[rank] - limit_[rank] * kRounding);
  }
  load.excess = rounded(load.excess);
  return load;
}

bool Loads::keeps_limit(Rank rank, double held) const {
  return limit_.empty() || held <= limit_[as_index(rank)] * kRounding;
}

bool Loads::fits(StageIndex stage, int begin, int end) const {
  return keeps_limit(placement_.rank_of(stage), held_.of(stage, begin, end));
}

std::vector<double> Loads::by_rank(const Measure& measure, const Cuts& cuts) const {
  std::vector<double> sums(as_index(placement_.num_ranks()), 0.0);
  StageIndex stage = 0;
  for (int copy = 0; copy < placement_.num_copies(); ++copy) {
    int begin = 0;
    for (const int num_layers : cuts) {
      sums[as_index(placement_.rank_of(stage))] += measure.of(stage, begin, begin + num_layers);
      begin += num_layers;
      ++stage;
    }
  }
  return sums;
}

}  // namespace pipert

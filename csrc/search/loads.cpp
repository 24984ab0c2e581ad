#include "search/loads.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/index.h"

namespace pipert {
namespace {

// Sums that differ by rounding alone are the same, or layers would move for ever.
double rounded(double value) { return static_cast<double>(static_cast<float>(value)); }

}  // namespace

Loads::Loads(std::vector<double> work, std::vector<double> size, std::vector<double> limit,
             const Placement& placement)
    : work_(std::move(work)),
      size_(std::move(size)),
      limit_(std::move(limit)),
      placement_(placement) {
  if (limit_.size() == 1) limit_.resize(as_index(placement.num_ranks()), limit_.front());
}

Cuts Loads::balanced_ranks(Cuts cuts) const {
  const int num_stages = placement_.num_stages();
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
  const std::vector<double> work = rank_sums(stage_sums(work_, cuts));
  Load load{.longest = rounded(*std::max_element(work.begin(), work.end()))};
  if (limit_.empty()) return load;
  const std::vector<double> held = rank_sums(stage_sums(size_, cuts));
  for (std::size_t rank = 0; rank < held.size(); ++rank) {
    load.excess += std::max(0.0, held[rank] - limit_[rank] * (1.0 + 1e-9));
  }
  load.excess = rounded(load.excess);
  return load;
}

std::vector<double> Loads::rank_sums(const std::vector<double>& stages) const {
  std::vector<double> by_rank(as_index(placement_.num_ranks()), 0.0);
  for (StageIndex stage = 0; stage < placement_.num_stages(); ++stage) {
    by_rank[as_index(placement_.rank_of(stage))] += stages[as_index(stage)];
  }
  return by_rank;
}

}  // namespace pipert

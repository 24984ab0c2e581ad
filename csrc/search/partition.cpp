#include "search/partition.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"
#include "search/loads.h"

namespace pipert {
namespace {

using Clock = std::chrono::steady_clock;

// Orders that the short search tries for one partition: enough to tell partitions apart.
constexpr std::int64_t kShortSearch = 200;
// Of the time, for moving cuts; the rest is for the order of the best ones.
constexpr double kShareOfCuts = 0.6;

// Work of one microbatch, by layer.
std::vector<double> work_of_layers(const Costs& costs, int num_layers) {
  std::vector<double> work = spread(costs.forward, num_layers);
  for (const auto* values : {&costs.input, &costs.weight}) {
    const std::vector<double> more = spread(*values, num_layers);
    std::transform(work.begin(), work.end(), more.begin(), work.begin(), std::plus<>());
  }
  return work;
}

// The best cuts of one placement so far.
struct Best {
  Cuts cuts;
  SearchResult search;
  double value = std::numeric_limits<double>::infinity();
};

class PartitionSearch {
 public:
  PartitionSearch(const PartitionRequest& request, const Placement& placement,
                  const std::function<bool()>& stop, Clock::time_point end)
      : request_(request),
        placement_(placement),
        stop_(stop),
        end_(end),
        loads_(Measure(work_of_layers(request.search.costs, request.num_layers)),
               Measure(spread(request.search.cap.activation_size, request.num_layers)),
               request.search.cap.limit, placement) {}

  // Starts from cuts that are balanced in layers, in stages and in ranks, which also keep the
  // limits if they can, and moves layers. Throws what search() throws if none of these can be
  // scheduled.
  Best run() {
    const int num_stages = placement_.num_stages();
    even_ = even_cuts(request_.num_layers, num_stages);
    const Cuts balanced = loads_.balanced_stages();
    consider(even_);
    even_value_ = best_.value;
    for (const Cuts& cuts :
         {balanced, loads_.balanced_ranks(even_), loads_.balanced_ranks(balanced)}) {
      consider(cuts);
    }
    if (best_.cuts.empty()) throw ValueError(reason_);
    while (!is_over() && improve()) {
    }
    return best_;
  }

  const Cuts& even() const { return even_; }
  double even_value() const { return even_value_; }

  SearchRequest request_for(const Cuts& cuts) const {
    SearchRequest search = request_.search;
    search.placements = {placement_};
    search.costs = stage_costs(search.costs, cuts);
    search.cap.activation_size = stage_sums(search.cap.activation_size, cuts);
    return search;
  }

 private:
  bool is_over() const { return Clock::now() >= end_ || (stop_ && stop_()); }

  // One round of moves; whether one of them is better.
  bool improve() {
    const int num_stages = placement_.num_stages();
    bool improved = false;
    for (int distance = 1; distance < num_stages; ++distance) {
      for (int from = 0; from < num_stages; ++from) {
        for (const int to : {from - distance, from + distance}) {
          if (to < 0 || to >= num_stages) continue;
          if (is_over()) return improved;
          improved |= consider(with_layer_moved(best_.cuts, from, to));
        }
      }
      if (improved) return true;
    }
    return improved;
  }

  // Whether the cuts are better than the best so far, which they then are.
  bool consider(const Cuts& cuts) {
    if (cuts.empty() || !seen_.insert(cuts).second) return false;
    SearchRequest search = request_for(cuts);
    search.time_limit = std::nullopt;
    search.iterations = std::min(kShortSearch, search.iterations.value_or(kShortSearch));
    try {
      const Bounds bounds =
          lower_bounds(placement_, search.num_microbatches, search.costs, search.cap);
      const bool of_span = search.objective == Objective::kSpan;
      if ((of_span ? bounds.span : bounds.makespan).value >= best_.value) return false;
      SearchResult found = pipert::search(search, stop_);
      if (found.value >= best_.value) return false;
      best_.cuts = cuts;
      best_.value = found.value;
      best_.search = std::move(found);
    } catch (const ValueError& error) {
      reason_ = error.what();  // these cuts need more memory than there is
      return false;
    }
    return true;
  }

  const PartitionRequest& request_;
  const Placement& placement_;
  const std::function<bool()>& stop_;
  Clock::time_point end_;
  Loads loads_;
  Cuts even_;
  double even_value_ = 0.0;
  Best best_;
  std::set<Cuts> seen_;
  std::string reason_;
};

void require_request(const PartitionRequest& request) {
  const SearchRequest& search = request.search;
  require_times(search.costs, request.num_layers, "num_layers");
  require_one_or_each("activation_size", search.cap.activation_size, request.num_layers,
                      "num_layers");
  if (search.placements.empty()) throw ValueError("placements must have at least one, got none");
  for (const Placement& placement : search.placements) {
    if (placement.num_stages() <= request.num_layers) continue;
    throw ValueError(concat("num_layers must be at least ", placement.num_stages(),
                            " (the stages of a placement), got ", request.num_layers));
  }
}

// Of any partition: all the work is done by num_ranks ranks, and one of them has the longest layer.
double bound_of_partitions(const PartitionRequest& request) {
  const std::vector<double> work = work_of_layers(request.search.costs, request.num_layers);
  const double total = std::accumulate(work.begin(), work.end(), 0.0);
  const double longest = *std::max_element(work.begin(), work.end());
  const int num_ranks = request.search.placements.front().num_ranks();
  return request.search.num_microbatches * std::max(total / num_ranks, longest);
}

}  // namespace

PartitionResult search_partition(const PartitionRequest& request,
                                 const std::function<bool()>& stop) {
  require_request(request);
  require_search_limits(request.search);
  const auto start = Clock::now();
  const std::optional<double> time_limit = time_limit_of(request.search);
  const auto num_placements = static_cast<double>(request.search.placements.size());
  PartitionResult result;
  result.even_value = std::numeric_limits<double>::infinity();
  Best best;
  std::optional<SearchRequest> chosen;
  std::string reason;
  for (std::size_t i = 0; i < request.search.placements.size(); ++i) {
    const double share = kShareOfCuts * (static_cast<double>(i) + 1.0) / num_placements;
    const auto end = time_limit ? start + std::chrono::duration_cast<Clock::duration>(
                                              std::chrono::duration<double>(share * *time_limit))
                                : Clock::time_point::max();
    PartitionSearch cuts(request, request.search.placements[i], stop, end);
    try {
      Best found = cuts.run();
      if (cuts.even_value() < result.even_value) {
        result.even = cuts.even();
        result.even_value = cuts.even_value();
      }
      if (found.value >= best.value) continue;
      chosen = cuts.request_for(found.cuts);
      best = std::move(found);
    } catch (const ValueError& error) {
      reason = error.what();
    }
  }
  if (!chosen) throw ValueError(reason);
  const std::chrono::duration<double> spent = Clock::now() - start;
  if (time_limit) chosen->time_limit = std::max(0.1 * *time_limit, *time_limit - spent.count());
  result.cuts = std::move(best.cuts);
  result.costs = chosen->costs;
  result.search = pipert::search(*chosen, stop);
  if (result.search.value > best.value) result.search = std::move(best.search);
  // The two add up the same work in another order.
  result.bound = std::min(bound_of_partitions(request), result.search.bound);
  return result;
}

}  // namespace pipert

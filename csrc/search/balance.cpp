#include "search/balance.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "base/one_or_each.h"
#include "search/folded.h"
#include "search/loads.h"

namespace pipert {
namespace {

// Two answers that are nearer to each other are the same.
constexpr double kNear = 1e-9;

double longest_of(const std::vector<double>& work) {
  return *std::max_element(work.begin(), work.end());
}

bool has_one_stage_a_rank(const Placement& placement) {
  return placement.num_stages() == placement.num_ranks();
}

// No cuts have a shorter longest rank: the ranks share all the work, and one of them has the layer
// that takes most.
double least_longest(const Loads& loads) {
  const Measure& work = loads.work();
  const int num_layers = work.num_layers();
  double largest = 0.0;
  for (int i = 0; i < num_layers; ++i) largest = std::max(largest, work.least(i, i + 1));
  const Placement& placement = loads.placement();
  return std::max(largest,
                  work.least(0, num_layers) * placement.num_copies() / placement.num_ranks());
}

// The least loaded of several starts after moves.
Cuts moved_cuts(const Loads& loads) {
  const int num_stages = loads.placement().stages_per_copy();
  const int num_layers = loads.work().num_layers();
  std::optional<Cuts> best;
  for (const Cuts& start : {loads.balanced_stages(), loads.balanced_stages(Limits::kOfStages),
                            even_cuts(num_layers, num_stages)}) {
    if (start.empty()) continue;
    Cuts cuts = loads.balanced_ranks(start);
    if (!best || loads.load_of(cuts) < loads.load_of(*best)) best = std::move(cuts);
  }
  return loads.load_of(*best).excess > 0.0 ? Cuts() : *best;
}

// Halves what is between the bound and the best so far, until nothing is.
Cuts folded_cuts(const Loads& loads) {
  const FoldedCuts folded(loads);
  Cuts best = moved_cuts(loads);
  if (best.empty()) best = folded.within(std::numeric_limits<double>::infinity());
  double low = least_longest(loads);
  while (!best.empty()) {
    const double high = longest_of(loads.work_by_rank(best));
    if (high - low <= kNear * high) break;
    const double middle = (low + high) / 2;
    Cuts cuts = folded.within(middle);
    if (cuts.empty()) {
      low = middle;
    } else {
      best = std::move(cuts);
    }
  }
  return best;
}

struct Found {
  Cuts cuts;  // empty: none keep the limits
  bool is_exact;
};

Found find_cuts(const Loads& loads) {
  if (has_one_stage_a_rank(loads.placement())) {
    return {.cuts = loads.balanced_stages(Limits::kOfStages), .is_exact = true};
  }
  if (FoldedCuts::is_for(loads.placement())) {
    return {.cuts = folded_cuts(loads), .is_exact = true};
  }
  return {.cuts = moved_cuts(loads), .is_exact = false};
}

void require_request(const BalanceRequest& request) {
  const int num_layers = request.work.num_layers();
  if (request.held.num_layers() != num_layers) {
    throw ValueError(concat("held must have ", num_layers, " layers (those of work), got ",
                            request.held.num_layers()));
  }
  for (const Measure* measure : {&request.work, &request.held}) {
    if (measure->num_stages() == 0 || measure->num_stages() == request.placement.num_stages()) {
      continue;
    }
    throw ValueError(concat("times must have ", request.placement.num_stages(),
                            " entries (the placement's stages), got ", measure->num_stages()));
  }
  const int num_stages = request.placement.stages_per_copy();
  if (num_layers < num_stages || num_stages == 0) {
    throw ValueError(
        concat("expected at least ", num_stages, " layers, one for each stage, got ", num_layers));
  }
  if (!request.limit.empty()) {
    require_one_or_each("limit", request.limit, request.placement.num_ranks(), "num_ranks");
  }
}

// All its digits: a limit that was rounded down would not do.
std::string exactly(double number) {
  std::array<char, 64> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
}

// What the fullest rank holds when it holds as little as it can.
[[noreturn]] void throw_unkeepable(const BalanceRequest& request, bool is_exact) {
  const Loads memory(request.held, request.held, {}, request.placement);
  const Cuts cuts = find_cuts(memory).cuts;
  const std::vector<double> held = memory.work_by_rank(cuts);
  const double least = longest_of(held);
  const double most = longest_of(request.limit);
  throw ValueError(
      concat(is_exact ? "no cuts keep" : "found no cuts that keep",
             " the limit of what a rank may hold: expected at least ", exactly(least),
             " bytes (what the fullest rank holds when it holds as little as it can), got ",
             exactly(most)));
}

}  // namespace

Balance balance(const BalanceRequest& request) {
  require_request(request);
  const Loads loads(request.work, request.held, request.limit, request.placement);
  Found found = find_cuts(loads);
  if (found.cuts.empty()) throw_unkeepable(request, found.is_exact);
  Balance result;
  result.cuts = loads.balanced_ranks(std::move(found.cuts));
  result.work = loads.work_by_rank(result.cuts);
  result.held = loads.held_by_rank(result.cuts);
  result.longest = longest_of(result.work);
  result.bound = found.is_exact ? result.longest : least_longest(loads);
  return result;
}

}  // namespace pipert

// search: finds an order of F, I and W for given costs and memory that is at least as good as every
// named schedule, and says how far from the best possible it can be.
//
// It starts from every registered generator whose schedule fits, adds list scheduling under many
// rules (schedule/greedy.h), and changes the best orders step by step, on all cores. With
// `iterations` alone the answer depends on the request only, not on the number of threads or the
// machine's speed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "analysis/bounds.h"
#include "analysis/simulate.h"
#include "ir/schedule.h"
#include "search/objective.h"

namespace pipert {

inline constexpr double kTimeLimit = 10.0;

struct SearchRequest {
  // Each vector has one entry, or one for each stage, and then only placements of that many stages
  // are tried.
  Costs costs;
  int num_microbatches = 0;
  MemoryCap cap;
  Objective objective = Objective::kMakespan;
  std::vector<Placement> placements;  // at least one, of the same number of ranks and one copy each
  std::vector<Schedule> seeds = {};   // of the caller's own, to start from as well
  // Of the search; the named schedules are built and simulated in any case, and take what they
  // take. Without either limit it is kTimeLimit.
  std::optional<double> time_limit;        // seconds
  std::optional<std::int64_t> iterations;  // orders that are tried, for each placement
  std::uint64_t seed = 0;
  int num_threads = 0;  // 0: one for each core
};

// A schedule that the search starts from.
struct Candidate {
  std::string source;  // "zb_v": its name
  double value = 0.0;  // its objective, by simulate()
};

struct SearchResult {
  Schedule schedule;  // its name is "search", or that of the schedule in the registry
  Timeline timeline;  // by simulate()
  double value = 0.0;
  std::string source;
  std::map<std::string, std::int64_t> options;  // of a named schedule, where it is one
  Bounds bounds;                                // the smallest over the placements
  double bound = 0.0;                           // the one of the objective
  std::vector<Candidate> seeds;  // the request's, and the named schedules that fit, best first
  std::int64_t iterations = 0;   // orders that were tried
  double seconds = 0.0;

  // How much of the time, at most, a better schedule could save: 1 - bound / value.
  double gap() const { return value > bound ? 1.0 - bound / value : 0.0; }
};

// Throws ValueError for numbers of microbatches, seconds or iterations that no search can have.
void require_search_limits(const SearchRequest& request);

// Seconds; nullopt: no limit.
std::optional<double> time_limit_of(const SearchRequest& request);

// `stop` is asked from the calling thread every few milliseconds; once it says true the search ends
// and the best so far comes back. Throws ValueError for a request that fits no placement, and for
// limits that no schedule can keep, with the least that would do.
SearchResult search(const SearchRequest& request, const std::function<bool()>& stop = {});

}  // namespace pipert

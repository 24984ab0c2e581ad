// seeds: the schedules that a search starts from, and that it must not be worse than.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "search/search.h"

namespace pipert {

struct Seed {
  Schedule schedule;                            // overlapped pairs taken apart
  std::map<std::string, std::int64_t> options;  // with which it was built by its name
  Timeline timeline;
  double value = 0.0;  // the request's objective
};

// The request's own seeds, and of every registered generator the schedule with one of the request's
// placements, if there is one and it keeps the request's limits; best first. Named schedules of
// other actions than F, B, I and W are left out. zb_auto is tried with its defaults and with the
// request's limit and times, interleaved schedules with all group sizes (of many, some). `stop` is
// asked between them; once it says true there are no more. Throws ValueError for a seed of the
// request's that doesn't fit it.
std::vector<Seed> all_seeds(const SearchRequest& request, const std::function<bool()>& stop);

// By simulate(); nullopt for a schedule that deadlocks under these costs, whose transfers may hold
// up their ranks. Throws ValueError for costs that don't fit. REQUIRES a schedule that verify()
// accepts.
std::optional<Timeline> timeline_under(const Costs& costs, const Schedule& schedule);

// The objective's part of a timeline.
double value_of(const Timeline& timeline, Objective objective);

}  // namespace pipert

// seeds: the schedules that a search starts from, and that it must not be worse than.
#pragma once

#include <vector>

#include "search/search.h"

namespace pipert {

struct Seed {
  Schedule schedule;  // overlapped pairs taken apart
  Timeline timeline;
  double value = 0.0;  // the request's objective
};

// The request's own seeds, and of every registered generator the schedule with one of the request's
// placements, if there is one and it keeps the request's limits; best first. Named schedules of
// other actions than F, B, I and W are left out. zb_auto is tried with its defaults and with the
// request's limit and times. Throws ValueError for a seed of the request's that doesn't fit it.
std::vector<Seed> all_seeds(const SearchRequest& request);

// The objective's part of a timeline.
double value_of(const Timeline& timeline, Objective objective);

}  // namespace pipert

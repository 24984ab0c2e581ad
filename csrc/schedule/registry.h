// The registry of schedule generators: a name, one line about it and a pure function. Immutable
// after start-up.
//
// Adding a schedule is adding one file with one `extern const Generator`, and its name to the table
// in registry.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "ir/schedule.h"

namespace pipert {

struct ScheduleRequest {
  int num_ranks = 0;
  int num_microbatches = 0;
  int num_stages = 0;                           // 0: the generator's own default
  std::map<std::string, std::int64_t> options;  // by the generator's option names

  // The option's value, or `fallback` if it was not given.
  std::int64_t option(std::string_view name, std::int64_t fallback) const;
};

struct Generator {
  std::string_view name;
  std::string_view summary;                   // one line for people
  std::span<const std::string_view> options;  // the option names that it takes
  Schedule (*build)(const ScheduleRequest& request);
  int num_copies = 1;  // of the model, in what it builds
};

// All generators, in the order in which they should be listed.
std::span<const Generator* const> generators();

// Their names, in the same order.
std::span<const std::string_view> schedule_names();

// A schedule is a list of actions in memory: a size beyond this is a mistake, better told than
// tried.
inline constexpr std::int64_t kMostActions = 100'000'000;

// Throws ValueError if num_stages x num_microbatches is beyond kMostActions. build_schedule() asks
// for what the request says; a generator that sets the number of stages by an option asks again.
void require_feasible(std::int64_t num_stages, int num_microbatches);

// Throws ValueError for an unknown name, with the nearest ones.
const Generator& generator_of(std::string_view name);

// Builds a schedule by name. Throws ValueError for an unknown name (with the nearest ones), an
// unknown option, or sizes that the generator can't take.
Schedule build_schedule(std::string_view name, const ScheduleRequest& request);

}  // namespace pipert

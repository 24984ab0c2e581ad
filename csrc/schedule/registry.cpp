#include "schedule/registry.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/suggest.h"

namespace pipert {

extern const Generator kGpipe;
extern const Generator kOneFOneB;
extern const Generator kInterleaved1F1B;
extern const Generator kEager1F1B;
extern const Generator kLoopedBfs;
extern const Generator kHanayo;
extern const Generator kZbH1;
extern const Generator kZbH2;
extern const Generator kZbAuto;
extern const Generator kZbInterleaved;
extern const Generator kZbV;
extern const Generator kVHalf;
extern const Generator kVMin;
extern const Generator kDualPipeV;
extern const Generator kDualPipe;
extern const Generator kChimera;
extern const Generator kPipeDream;
extern const Generator kPipeDreamVerticalSync;
extern const Generator kPipeDream2Bw;

namespace {

constexpr std::array<const Generator*, 19> kGenerators = {
    &kGpipe,         &kOneFOneB,  &kInterleaved1F1B,
    &kEager1F1B,     &kLoopedBfs, &kHanayo,
    &kZbH1,          &kZbH2,      &kZbAuto,
    &kZbInterleaved, &kZbV,       &kVHalf,
    &kVMin,          &kDualPipeV, &kDualPipe,
    &kChimera,       &kPipeDream, &kPipeDreamVerticalSync,
    &kPipeDream2Bw,
};

void require_sizes(const ScheduleRequest& request) {
  if (request.num_ranks < 1) {
    throw ValueError(concat("num_ranks must be at least 1, got ", request.num_ranks));
  }
  if (request.num_microbatches < 1) {
    throw ValueError(concat("num_microbatches must be at least 1, got ", request.num_microbatches));
  }
  if (request.num_stages < 0) {
    throw ValueError(concat("num_stages must be at least ", request.num_ranks, " (num_ranks), got ",
                            request.num_stages));
  }
  require_feasible(std::max(request.num_ranks, request.num_stages), request.num_microbatches);
}

void require_known_options(const Generator& generator, const ScheduleRequest& request) {
  for (const auto& [name, value] : request.options) {
    const auto& known = generator.options;
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      throw ValueError(
          unknown_name(concat("option of schedule '", generator.name, "':"), name, known));
    }
  }
}

}  // namespace

std::int64_t ScheduleRequest::option(std::string_view name, std::int64_t fallback) const {
  const auto found = options.find(std::string(name));
  return found == options.end() ? fallback : found->second;
}

void require_feasible(std::int64_t num_stages, int num_microbatches) {
  if (num_stages > kMostActions / num_microbatches) {
    throw ValueError(concat("num_stages x num_microbatches must be at most ", kMostActions,
                            ", got ", num_stages, " x ", num_microbatches));
  }
}

std::span<const Generator* const> generators() { return kGenerators; }

std::span<const std::string_view> schedule_names() {
  static const auto names = [] {
    std::array<std::string_view, kGenerators.size()> result;
    std::transform(kGenerators.begin(), kGenerators.end(), result.begin(),
                   [](const Generator* generator) { return generator->name; });
    return result;
  }();
  return names;
}

const Generator& generator_of(std::string_view name) {
  const auto found = std::find_if(kGenerators.begin(), kGenerators.end(),
                                  [&](const Generator* each) { return each->name == name; });
  if (found == kGenerators.end()) {
    throw ValueError(unknown_name("schedule", name, schedule_names()));
  }
  return **found;
}

Schedule build_schedule(std::string_view name, const ScheduleRequest& request) {
  const Generator& generator = generator_of(name);
  require_sizes(request);
  require_known_options(generator, request);
  return generator.build(request);
}

}  // namespace pipert

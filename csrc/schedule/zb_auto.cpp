// zb_auto (Qi et al. 2023, arXiv:2401.10241, section 3.1): list scheduling of F, I and W under a
// memory cap, for given times. The heuristic runs under several rules, and the order whose longest
// span of a rank is shortest is taken. A cap of p activations gives the paper's ZB-1p, 2p its
// ZB-2p.
//
// p = 3 ranks, m = 5 microbatches, F, I and W of the same length, K = 4:
//
//   rank 0: F0 F1 F2 F3 .  I0 W0 F4 I1 W1 I2 I3 W2 W3 I4 W4 .
//   rank 1: .  F0 F1 F2 I0 F3 I1 W0 F4 I2 I3 W1 W2 I4 W3 W4 .
//   rank 2: .  .  F0 I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 W2 W3 W4
//
// Options, all ints: memory_limit K (default p), in activations of one stage; weight_percent: how
// much of an activation stays from the end of its I to that of its W (default 100; the paper frees
// the rest at I); forward, input, weight, latency: the times F, I, W and c, in any one unit
// (default 1, 1, 1, 0).
//
// Bubble, for m > K: (p-1)(I + max(F-W, 0)) for K = p, (p-1) max(F+I-2W, I-F, 0) for K = 2p-1, as
// zb_h2; with a latency and K = p it is (p-1)(F+I-W+4c) on the paper's profiles, as zb_h1.
// Peak activations, each alive until its W: at most min(m, K) on every rank.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "schedule/greedy.h"
#include "schedule/single_stage.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 6> kOptions = {"memory_limit", "weight_percent", "forward",
                                                      "input",        "weight",         "latency"};

// Actions to be placed in all attempts together: some seconds' work. The first is always made.
constexpr std::int64_t kEffort = 20'000'000;

std::int64_t option(const ScheduleRequest& request, std::string_view name, std::int64_t fallback,
                    std::int64_t least, std::int64_t most) {
  const std::int64_t value = request.option(name, fallback);
  if (value < least || value > most) {
    throw ValueError(concat("option '", name, "' of schedule 'zb_auto' must be from ", least,
                            " to ", most, ", got ", value));
  }
  return value;
}

Workload workload_of(const Schedule& frame, const ScheduleRequest& request) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const auto ranks = as_index(request.num_ranks);
  const auto time = [&](std::string_view name, std::int64_t fallback) {
    return std::vector<double>(
        ranks, static_cast<double>(option(request, name, fallback, 0, 1'000'000'000'000)));
  };
  const double limit =
      static_cast<double>(option(request, "memory_limit", request.num_ranks, 1, most));
  const double weight_share =
      static_cast<double>(option(request, "weight_percent", 100, 0, 100)) / 100.0;
  StageTimes times{.forward = time("forward", 1),
                   .input = time("input", 1),
                   .weight = time("weight", 1),
                   .activation = time("latency", 0),
                   .gradient = time("latency", 0)};
  return {.placement = frame.placement,
          .num_microbatches = request.num_microbatches,
          .times = std::move(times),
          .room = {.limit = std::vector<double>(ranks, limit),
                   .size = std::vector<double>(ranks, 1.0),
                   .weight_share = weight_share}};
}

enum class Depth : std::uint8_t {
  kBefore,  // as many forwards as end before the first gradient is back
  kFill,    // one more, which fills the gap and delays the first I
  kRoom,    // as many as there is room for
  kReach,   // just enough to reach the last rank, as 1f1b
};

enum class Drain : std::uint8_t {
  kBusy,       // no rank idles if it has a W
  kBusyLast,   // none but before its last I
  kHalf,       // no rank idles for more than half a W, but before its last I
  kPatient,    // no W delays an I
  kBusyFirst,  // rank 0 never idles; on others no W delays an I
};

struct Attempt {
  Depth depth;
  bool forwards_first;  // a forward goes before an input half, where both can run
  double patience;
  Drain drain;
};

// Those that were best on some of the paper's profiles first.
std::vector<Attempt> attempts() {
  std::vector<Attempt> all = {
      {Depth::kBefore, true, 0.5, Drain::kBusyLast}, {Depth::kReach, true, 0.5, Drain::kHalf},
      {Depth::kFill, true, 0.0, Drain::kBusy},       {Depth::kBefore, true, 0.0, Drain::kBusy},
      {Depth::kBefore, true, 1.0, Drain::kHalf},     {Depth::kBefore, true, 0.0, Drain::kBusyLast},
      {Depth::kBefore, true, 0.5, Drain::kBusyFirst}};
  for (const Depth depth : {Depth::kBefore, Depth::kFill, Depth::kRoom, Depth::kReach}) {
    for (const bool forwards_first : {true, false}) {
      for (const double patience : {0.0, 0.5, 1.0}) {
        for (const Drain drain :
             {Drain::kBusy, Drain::kBusyLast, Drain::kHalf, Drain::kPatient, Drain::kBusyFirst}) {
          all.push_back({depth, forwards_first, patience, drain});
        }
      }
    }
  }
  return all;
}

int depth_of(Depth depth, Rank rank, const Workload& workload) {
  const int num_ranks = workload.placement.num_ranks();
  const StageTimes& times = workload.times;
  const double room = std::floor(with_rounding(workload.room.limit.front()));
  const int most = static_cast<int>(std::min<double>(room, workload.num_microbatches));
  const int after = num_ranks - 1 - rank;
  // From the end of the rank's first forward to the begin of its first input half, in forwards.
  const double wait = after * (times.forward.front() + times.input.front() +
                               times.activation.front() + times.gradient.front());
  const double forwards = times.forward.front() > 0.0 ? wait / times.forward.front() : most;
  constexpr double rounding = 1e-9;
  const auto at_most = [&](double depth) {
    return static_cast<int>(std::min<double>(depth, most));
  };
  switch (depth) {
    case Depth::kBefore:
      return at_most(1.0 + std::floor(forwards + rounding));
    case Depth::kFill:
      return at_most(1.0 + std::ceil(forwards - rounding));
    case Depth::kRoom:
      return most;
    case Depth::kReach:
      return at_most(1.0 + after);
  }
  return most;
}

GreedyRules rules_of(const Attempt& attempt, const Workload& workload) {
  const int num_ranks = workload.placement.num_ranks();
  GreedyRules rules;
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    rules.depth.push_back(depth_of(attempt.depth, rank, workload));
  }
  rules.forward_offset.assign(as_index(num_ranks), attempt.forwards_first ? 0.0 : 1.0);
  rules.input_offset.assign(as_index(num_ranks), attempt.forwards_first ? 1.0 : 0.0);
  rules.patience = attempt.patience;
  const auto drain = [&](double patience, double last) {
    rules.drain_patience.assign(as_index(num_ranks), patience);
    rules.last_patience = last;
  };
  switch (attempt.drain) {
    case Drain::kBusy:
      drain(0.0, 0.0);
      break;
    case Drain::kBusyLast:
      drain(0.0, 1.0);
      break;
    case Drain::kHalf:
      drain(0.5, 1.0);
      break;
    case Drain::kPatient:
      drain(1.0, 1.0);
      break;
    case Drain::kBusyFirst:
      drain(1.0, 0.0);
      rules.drain_patience.front() = 0.0;
      break;
  }
  return rules;
}

Schedule build(const ScheduleRequest& request) {
  const Schedule frame = single_stage_frame("zb_auto", request);
  const Workload workload = workload_of(frame, request);
  const std::int64_t num_actions = std::int64_t{3} * request.num_ranks * request.num_microbatches;
  std::optional<GreedyOrder> best;
  std::int64_t effort = 0;
  for (const Attempt& attempt : attempts()) {
    if (best && effort + num_actions > kEffort) break;
    GreedyOrder order = schedule_greedily(workload, rules_of(attempt, workload));
    effort += num_actions;
    // What differs by rounding alone is the same.
    const auto better = [](double a, double b) { return a < b * (1.0 - 1e-12); };
    if (!best || better(order.times.longest_span, best->times.longest_span) ||
        (!better(best->times.longest_span, order.times.longest_span) &&
         better(order.times.makespan, best->times.makespan))) {
      best = std::move(order);
    }
  }
  return to_schedule(best->lanes, workload, frame.name);
}

}  // namespace

extern const Generator kZbAuto;
const Generator kZbAuto{
    .name = "zb_auto",
    .summary = "split backwards, list-scheduled for given times under a memory cap",
    .options = kOptions,
    .build = build};

}  // namespace pipert

#include "analysis/simulate.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "analysis/action_index.h"
#include "analysis/held_bytes.h"
#include "analysis/memory.h"
#include "analysis/steps.h"
#include "analysis/transfers.h"
#include "analysis/verify.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool has(const Schedule& schedule, ActionKind kind) {
  return std::any_of(schedule.ranks.begin(), schedule.ranks.end(), [kind](const auto& actions) {
    return std::any_of(actions.begin(), actions.end(),
                       [kind](const Action& action) { return action.kind == kind; });
  });
}

bool costs_something(const std::vector<double>& values) {
  return std::any_of(values.begin(), values.end(), [](double value) { return value > 0.0; });
}

void append_for_each_stage(Schedule& schedule, Action action) {
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    for (const StageIndex stage : schedule.placement.stages_of(rank)) {
      action.stage = stage;
      schedule.ranks[as_index(rank)].push_back(action);
    }
  }
}

// The schedule with its pairs taken apart and its end spelled out (Note [The end of a step]), if
// that changes anything: a copy of a large one is large.
std::optional<Schedule> spelled_out(const Schedule& schedule, const Costs& costs) {
  const bool trains = !is_forward_only(schedule);
  const bool reduces =
      trains && costs_something(costs.reduce) && !has(schedule, ActionKind::kReduceGrad);
  const bool updates =
      trains && costs_something(costs.update) && !has(schedule, ActionKind::kUpdate);
  if (!reduces && !updates && !has(schedule, ActionKind::kOverlap)) return std::nullopt;
  Schedule result = split_overlaps(schedule);
  if (reduces) append_for_each_stage(result, {.kind = ActionKind::kReduceGrad});
  if (updates) append_for_each_stage(result, {.kind = ActionKind::kUpdate, .version = 1});
  return result;
}

// What is seen of a step in a timeline: compute, and whatever else takes time.
bool has_span(const Steps& steps, Place place) {
  const Step& step = steps.at(place);
  return is_compute(steps.action_at(place).kind) || step.end > step.start;
}

// From places of steps to those of spans. They differ only where some steps have no span.
class SpanPlaces {
 public:
  explicit SpanPlaces(const Steps& steps) : steps_(steps) {
    bool differ = false;
    for (Rank rank = 0; rank < steps.schedule.num_ranks(); ++rank) {
      for (int i = 0; i < steps.num_steps(rank) && !differ; ++i) {
        differ = !has_span(steps, {rank, i});
      }
    }
    if (differ) count_spans();
  }

  Place of(Place step) const {
    if (!step.exists() || !index_) return step;
    const Action& action = steps_.action_at(step);
    const Place seen = is_transfer(action) ? compute_of(action, *index_) : step;
    return {seen.rank, spans_before_[as_index(seen.rank)][as_index(seen.position)]};
  }

 private:
  void count_spans() {
    index_.emplace(steps_.schedule);
    for (Rank rank = 0; rank < steps_.schedule.num_ranks(); ++rank) {
      auto& before = spans_before_.emplace_back();
      int num_spans = 0;
      for (int i = 0; i < steps_.num_steps(rank); ++i) {
        before.push_back(num_spans);
        if (has_span(steps_, {rank, i})) ++num_spans;
      }
    }
  }

  const Steps& steps_;
  std::optional<ActionIndex> index_;
  std::vector<std::vector<int>> spans_before_;  // by rank, each step
};

// Back from the last end through what each step had to wait for.
std::vector<Place> critical_path(const Steps& steps, const SpanPlaces& places) {
  Place last;
  for (Rank rank = 0; rank < steps.schedule.num_ranks(); ++rank) {
    const Place end{rank, steps.num_steps(rank) - 1};
    if (end.position < 0) continue;
    if (!last.exists() || steps.at(end).end > steps.at(last).end) last = end;
  }
  std::vector<Place> path;
  for (Place place = last; place.exists(); place = steps.at(place).before) {
    if (has_span(steps, place)) path.push_back(places.of(place));
  }
  std::reverse(path.begin(), path.end());
  return path;
}

std::vector<MessageSpan> messages(Steps& steps, const SpanPlaces& places) {
  std::vector<MessageSpan> result;
  for (auto& of_reader : steps.messages) {
    std::stable_sort(of_reader.begin(), of_reader.end(),
                     [](const MessageSpan& a, const MessageSpan& b) {
                       if (a.reader.position != b.reader.position)
                         return a.reader.position < b.reader.position;
                       return a.arrived > b.arrived;
                     });
    for (MessageSpan message : of_reader) {
      for (Place* place : {&message.sender, &message.reader, &message.ahead}) {
        *place = places.of(*place);
      }
      result.push_back(message);
    }
    of_reader = {};
  }
  return result;
}

// Empties the steps, rank by rank, so that both are never there as a whole.
std::vector<std::vector<Span>> spans(Steps& steps) {
  std::vector<std::vector<Span>> result(steps.ranks.size());
  for (Rank rank = 0; rank < steps.schedule.num_ranks(); ++rank) {
    auto& out = result[as_index(rank)];
    out.reserve(steps.ranks[as_index(rank)].size());
    for (int i = 0; i < steps.num_steps(rank); ++i) {
      if (!has_span(steps, {rank, i})) continue;
      const Step& step = steps.at({rank, i});
      out.push_back({steps.action_at({rank, i}), step.start, step.end});
    }
    steps.ranks[as_index(rank)] = {};
  }
  return result;
}

// Actions without a span count too: an OFFLOAD that takes no time.
void fill_memory(Timeline& timeline, const Schedule& schedule, const Costs& costs,
                 const HeldBytes& held) {
  timeline.peak_bytes = peak_bytes(schedule, costs, held);
  if (!has(schedule, ActionKind::kOffload)) return;
  timeline.peak_memory.clear();
  for (const auto& actions : schedule.ranks) {
    timeline.peak_memory.push_back(peak_activations(actions));
  }
}

// Of ranks that block and wait for each other. `whole`: the schedule, spelled out.
[[noreturn]] void refuse_waiting(const Schedule& schedule, const Schedule& whole, Costs costs,
                                 VerifyOptions options) {
  if (!std::exchange(costs.skips, {}).empty()) {
    Steps chain = make_steps(whole, costs, false);
    if (run_blocking(chain)) {
      throw ValueError(
          concat("expected ranks that don't wait for each other in transfers that block, got '",
                 schedule.name, "', whose skips have them do so"));
    }
  }
  options.send_mode = SendMode::kRendezvous;
  require_valid(schedule, options);
  throw InternalError("ranks wait for each other, and verify() knows of no reason");
}

}  // namespace

Timeline simulate(const Schedule& schedule, const Costs& costs, Detail detail) {
  require_costs(costs, schedule);
  VerifyOptions options;
  options.forward_only = is_forward_only(schedule);
  require_valid(schedule, options);
  const std::optional<Schedule> other = spelled_out(schedule, costs);
  const Schedule& whole = other ? *other : schedule;
  const bool holds_skips = !costs.skips.empty() && !costs.activation_bytes.empty();
  Steps steps = make_steps(whole, costs, detail == Detail::kMessages || holds_skips);
  if (!costs.blocking) {
    run_asynchronous(steps);
  } else if (!run_blocking(steps)) {
    refuse_waiting(schedule, whole, costs, options);
  }
  const HeldBytes held = holds_skips ? held_by_skips(steps) : HeldBytes();
  const SpanPlaces places(steps);
  std::vector<Place> path = critical_path(steps, places);
  std::vector<MessageSpan> kept;
  if (detail == Detail::kMessages) kept = messages(steps, places);
  Timeline timeline = make_timeline(spans(steps));
  fill_memory(timeline, whole, costs, held);
  timeline.critical_path = std::move(path);
  timeline.messages = std::move(kept);
  timeline.is_simulated = true;
  timeline.is_blocking = costs.blocking;
  return timeline;
}

}  // namespace pipert

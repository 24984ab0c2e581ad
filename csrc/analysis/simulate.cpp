#include "analysis/simulate.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "analysis/action_index.h"
#include "analysis/transfers.h"
#include "analysis/verify.h"
#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

void require_cost(std::string_view name, double value) {
  if (std::isfinite(value) && value >= 0.0) return;
  throw ValueError(concat(name, " must be finite and at least 0, got ", value));
}

void require_costs(std::string_view name, const std::vector<double>& values, int num_stages) {
  for (const double value : values) require_cost(name, value);
  if (values.size() == 1 || values.size() == as_index(num_stages)) return;
  throw ValueError(
      concat(name, " must be one number or ", num_stages, " (num_stages), got ", values.size()));
}

double of_stage(const std::vector<double>& values, StageIndex stage) {
  return values.size() == 1 ? values.front() : values[as_index(stage)];
}

class Simulation {
 public:
  // `schedule`: overlapped pairs taken apart, verified.
  Simulation(const Schedule& schedule, const Costs& costs)
      : schedule_(schedule), costs_(costs), clocks_(as_index(schedule.num_ranks()), 0.0) {
    for (const auto& actions : schedule.ranks) steps_.emplace_back(actions.size());
    find_senders();
  }

  Timeline run() {
    std::vector<int> num_steps;
    for (const auto& steps : steps_) num_steps.push_back(static_cast<int>(steps.size()));
    const auto done = walk(
        num_steps,
        [this](Rank rank, int position) -> std::optional<Wait> {
          const Place sender = step_at({rank, position}).sender;
          return sender.exists() ? std::optional(Wait{sender.rank, sender.position + 1})
                                 : std::nullopt;
        },
        [this](Rank rank, int position) { run_step({rank, position}); });
    if (done != num_steps) throw InternalError("a schedule that verify() accepted can't finish");
    Timeline timeline = make_timeline(compute_spans());
    timeline.critical_path = critical_path();
    return timeline;
  }

 private:
  struct Step {
    double start = 0.0;
    double end = 0.0;
    Place sender;  // whose message it reads from another rank, if any
    Place before;  // what it had to wait for, if anything: the step before it or the sender
  };

  Step& step_at(Place place) { return steps_[as_index(place.rank)][as_index(place.position)]; }
  const Step& step_at(Place place) const {
    return steps_[as_index(place.rank)][as_index(place.position)];
  }
  const Action& action_at(Place place) const {
    return schedule_.ranks[as_index(place.rank)][as_index(place.position)];
  }

  void find_senders() {
    const ActionIndex index(schedule_);
    for (const Transfer& transfer : transfers_of(schedule_, index)) {
      const Action& reader = action_at(transfer.receiver);
      step_at(consumer_of(reader, transfer.receiver, index)).sender = transfer.sender;
    }
  }

  // A RECV only posts a buffer: what waits for the message is the action that reads it.
  Place consumer_of(const Action& reader, Place place, const ActionIndex& index) const {
    if (is_compute(reader.kind)) return place;
    if (reader.kind == ActionKind::kRecvForward) {
      return index.find(as_kind(reader, ActionKind::kForward));
    }
    const Place whole = index.find(as_kind(reader, ActionKind::kBackward));
    return whole.exists() ? whole : index.find(as_kind(reader, ActionKind::kInputGrad));
  }

  void run_step(Place place) {
    Step& step = step_at(place);
    double& clock = clocks_[as_index(place.rank)];
    step.start = clock;
    if (place.position > 0) step.before = {place.rank, place.position - 1};
    if (step.sender.exists()) {
      const double arrival = step_at(step.sender).end + transfer_time(action_at(place));
      if (arrival > step.start || place.position == 0) step.before = step.sender;
      step.start = std::max(step.start, arrival);
    }
    step.end = step.start + duration(action_at(place));
    clock = step.end;
  }

  double duration(const Action& action) const {
    switch (action.kind) {
      case ActionKind::kForward:
      case ActionKind::kRecompute:
        return of_stage(costs_.forward, action.stage);
      case ActionKind::kBackward:
        return of_stage(costs_.input, action.stage) + of_stage(costs_.weight, action.stage);
      case ActionKind::kInputGrad:
        return of_stage(costs_.input, action.stage);
      case ActionKind::kWeightGrad:
        return of_stage(costs_.weight, action.stage);
      case ActionKind::kSendForward:
      case ActionKind::kRecvForward:
      case ActionKind::kSendBackward:
      case ActionKind::kRecvBackward:
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
      case ActionKind::kReduceGrad:
      case ActionKind::kOffload:
      case ActionKind::kReload:
      case ActionKind::kUpdate:
      case ActionKind::kOverlap:
        return 0.0;
    }
    return 0.0;
  }

  // Of the message that `reader` reads: a forward reads what comes out of the stage before it, a
  // backward the gradient of what comes out of its own.
  double transfer_time(const Action& reader) const {
    const bool is_forward = reader.kind == ActionKind::kForward;
    const double bytes = of_stage(costs_.bytes, is_forward ? reader.stage - 1 : reader.stage);
    return costs_.latency + (costs_.bandwidth > 0.0 ? bytes / costs_.bandwidth : 0.0);
  }

  Span span_at(Place place) const {
    const Step& step = step_at(place);
    return {.rank = place.rank, .action = action_at(place), .start = step.start, .end = step.end};
  }

  std::vector<std::vector<Span>> compute_spans() const {
    std::vector<std::vector<Span>> spans(steps_.size());
    for (Rank rank = 0; rank < schedule_.num_ranks(); ++rank) {
      const int size = static_cast<int>(steps_[as_index(rank)].size());
      spans[as_index(rank)].reserve(as_index(size));
      for (int i = 0; i < size; ++i) {
        if (is_compute(action_at({rank, i}).kind))
          spans[as_index(rank)].push_back(span_at({rank, i}));
      }
    }
    return spans;
  }

  // Back from the last end through what each step had to wait for.
  std::vector<Span> critical_path() const {
    Place last;
    for (Rank rank = 0; rank < schedule_.num_ranks(); ++rank) {
      const Place end{rank, static_cast<int>(steps_[as_index(rank)].size()) - 1};
      if (end.position < 0) continue;
      if (!last.exists() || step_at(end).end > step_at(last).end) last = end;
    }
    std::vector<Span> path;
    for (Place place = last; place.exists(); place = step_at(place).before) {
      if (is_compute(action_at(place).kind)) path.push_back(span_at(place));
    }
    std::reverse(path.begin(), path.end());
    return path;
  }

  const Schedule& schedule_;
  const Costs& costs_;
  std::vector<std::vector<Step>> steps_;  // by rank, then by position
  std::vector<double> clocks_;            // by rank: when it is free
};

}  // namespace

Timeline simulate(const Schedule& schedule, const Costs& costs) {
  const int num_stages = schedule.num_stages();
  require_costs("forward", costs.forward, num_stages);
  require_costs("input", costs.input, num_stages);
  require_costs("weight", costs.weight, num_stages);
  require_costs("bytes", costs.bytes, num_stages);
  require_cost("latency", costs.latency);
  require_cost("bandwidth", costs.bandwidth);
  VerifyOptions options;
  options.forward_only = is_forward_only(schedule);
  require_valid(schedule, options);
  return Simulation(split_overlaps(schedule), costs).run();
}

}  // namespace pipert

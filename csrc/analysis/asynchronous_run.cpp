#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "analysis/steps.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

class AsynchronousRun {
 public:
  explicit AsynchronousRun(Steps& steps)
      : steps_(steps),
        network_(steps.costs, steps.schedule.num_ranks()),
        next_(steps.ranks.size(), 0),
        clocks_(steps.ranks.size(), 0.0) {}

  void run() {
    if (network_.is_shared()) {
      run_in_order_of_time();
    } else {
      run_rank_by_rank();
    }
    for (Rank rank = 0; rank < num_ranks(); ++rank) {
      if (next_[as_index(rank)] != steps_.num_steps(rank)) {
        throw InternalError("a schedule that verify() accepted can't finish");
      }
    }
  }

 private:
  Rank num_ranks() const { return static_cast<Rank>(steps_.ranks.size()); }

  // The order in which ranks are taken up changes nothing, so each goes on as far as it can.
  void run_rank_by_rank() {
    std::vector<Rank> ready;
    for (Rank rank = num_ranks() - 1; rank >= 0; --rank) ready.push_back(rank);
    while (!ready.empty()) {
      const Rank rank = ready.back();
      ready.pop_back();
      while (can_run(rank)) {
        run_next(rank, [&](Rank awakened) { ready.push_back(awakened); });
      }
    }
  }

  // Always the step that ends first (of several the lowest rank's): what it sends can't come before
  // anything that has been sent.
  void run_in_order_of_time() {
    using Event = std::pair<double, Rank>;
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
    const auto put = [&](Rank rank) { events.emplace(end_of_next(rank), rank); };
    for (Rank rank = 0; rank < num_ranks(); ++rank) {
      if (can_run(rank)) put(rank);
    }
    while (!events.empty()) {
      const Rank rank = events.top().second;
      events.pop();
      run_next(rank, put);
      if (can_run(rank)) put(rank);
    }
  }

  Place next_of(Rank rank) const { return {rank, next_[as_index(rank)]}; }

  bool can_run(Rank rank) const {
    const Place next = next_of(rank);
    return next.position < steps_.num_steps(rank) && steps_.at(next).start != kNotSent;
  }

  double end_of_next(Rank rank) const {
    const Place next = next_of(rank);
    return std::max(steps_.at(next).start, clocks_[as_index(rank)]) + steps_.duration_at(next);
  }

  // awaken(rank), for each that stood before a reader which waited for this step alone.
  template <typename Awaken>
  void run_next(Rank rank, Awaken awaken) {
    const Place place = next_of(rank);
    Step& step = steps_.at(place);
    double& clock = clocks_[as_index(rank)];
    step.end = end_of_next(rank);
    if (place.position > 0 && clock >= step.start) step.before = {rank, place.position - 1};
    step.start = std::max(step.start, clock);
    clock = step.end;
    ++next_[as_index(rank)];
    steps_.for_each_reader(place, [&](Place reader) {
      steps_.send(network_, place, reader, step.end, place);
      if (next_of(reader.rank) == reader && can_run(reader.rank)) awaken(reader.rank);
    });
  }

  Steps& steps_;
  Network network_;
  std::vector<int> next_;       // by rank: the position of its next step
  std::vector<double> clocks_;  // by rank: when it is free
};

}  // namespace

void run_asynchronous(Steps& steps) { AsynchronousRun(steps).run(); }

}  // namespace pipert

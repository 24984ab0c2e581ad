#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "analysis/steps.h"
#include "base/index.h"

namespace pipert {
namespace {

class BlockingRun {
 public:
  explicit BlockingRun(Steps& steps)
      : steps_(steps),
        network_(steps.costs, steps.schedule.num_ranks()),
        stands_(steps.ranks.size()) {}

  bool run() {
    for (Rank rank = 0; rank < num_ranks(); ++rank) advance(rank);
    while (!meetings_.empty()) {
      const Rank source = meetings_.top().second;
      meetings_.pop();
      transfer({source, stand_of(source).next - 1});
    }
    for (Rank rank = 0; rank < num_ranks(); ++rank) {
      if (stand_of(rank).next != steps_.num_steps(rank)) return false;
    }
    return true;
  }

 private:
  // Where a rank is between two of its steps.
  struct Stand {
    int next = 0;         // the position of the step behind it
    int open = 0;         // transfers that it has to get through first: a send, a receive or both
    double came = 0.0;    // when it came here
    Place came_by;        // the step without which it would have come earlier
    double leaves = 0.0;  // when all transfers so far are through
    Place leaves_by;      // likewise
  };

  Rank num_ranks() const { return static_cast<Rank>(steps_.ranks.size()); }
  Stand& stand_of(Rank rank) { return stands_[as_index(rank)]; }

  // From a place where nothing is open to one where something is, or to the rank's end.
  void advance(Rank rank) {
    Stand& stand = stand_of(rank);
    begin_receive(rank);
    while (stand.open == 0 && stand.next < steps_.num_steps(rank)) {
      compute(rank);
      begin_send(rank);
      begin_receive(rank);
    }
  }

  void compute(Rank rank) {
    Stand& stand = stand_of(rank);
    const Place place{rank, stand.next};
    Step& step = steps_.at(place);
    step.before = stand.leaves_by;
    step.start = stand.leaves;
    step.end = step.start + steps_.duration_at(place);
    stand = {.next = place.position + 1,
             .open = 0,
             .came = step.end,
             .came_by = place,
             .leaves = step.end,
             .leaves_by = place};
  }

  // Of what the step before this place made.
  void begin_send(Rank rank) {
    Stand& stand = stand_of(rank);
    const Place sender{rank, stand.next - 1};
    const Place reader = steps_.at(sender).reader;
    if (!reader.exists()) return;
    ++stand.open;
    if (stand_of(reader.rank).next == reader.position) {
      meet(sender);
    } else {
      steps_.at(reader).before = sender;  // who waits for it
    }
  }

  // Of what the step behind this place needs.
  void begin_receive(Rank rank) {
    Stand& stand = stand_of(rank);
    if (stand.next == steps_.num_steps(rank)) return;
    const Step& step = steps_.at({rank, stand.next});
    if (step.start != kNotSent) return;
    ++stand.open;
    if (step.before.exists()) meet(step.before);
  }

  void meet(Place sender) {
    const Rank destination = steps_.at(sender).reader.rank;
    meetings_.emplace(std::max(stand_of(sender.rank).came, stand_of(destination).came),
                      sender.rank);
  }

  void transfer(Place sender) {
    const Rank destination = steps_.at(sender).reader.rank;
    Stand& from = stand_of(sender.rank);
    Stand& to = stand_of(destination);
    const Stand& later = from.came >= to.came ? from : to;
    const Transmission sent = steps_.send(network_, sender, later.came, later.came_by);
    for (Stand* stand : {&from, &to}) {
      --stand->open;
      if (sent.arrived <= stand->leaves) continue;
      stand->leaves = sent.arrived;
      stand->leaves_by = sent.cause;
    }
    for (const Rank rank : {destination, sender.rank}) {
      if (stand_of(rank).open == 0) advance(rank);
    }
  }

  Steps& steps_;
  Network network_;
  std::vector<Stand> stands_;  // by rank
  // Transfers whose ranks have both come to them: since when, and the source.
  using Meeting = std::pair<double, Rank>;
  std::priority_queue<Meeting, std::vector<Meeting>, std::greater<>> meetings_;
};

}  // namespace

bool run_blocking(Steps& steps) { return BlockingRun(steps).run(); }

}  // namespace pipert

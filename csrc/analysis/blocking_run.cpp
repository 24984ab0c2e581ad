#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "analysis/steps.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

class BlockingRun {
 public:
  explicit BlockingRun(Steps& steps)
      : steps_(steps),
        network_(steps.costs, steps.schedule.num_ranks()),
        stands_(steps.ranks.size()) {}

  void run() {
    for (Rank rank = 0; rank < num_ranks(); ++rank) advance(rank);
    while (!meetings_.empty()) {
      const Rank source = meetings_.top().second;
      meetings_.pop();
      transfer(place_of(source));
    }
    for (Rank rank = 0; rank < num_ranks(); ++rank) {
      if (stand_of(rank).position != steps_.num_steps(rank)) {
        throw InternalError("a schedule that verify() accepted without buffers can't finish");
      }
    }
  }

 private:
  // How far a rank is.
  struct Stand {
    int position = 0;
    bool sends = false;  // it has done this step, and stands before the send of its result
    double clock = 0.0;
    Place cause;  // the step without which it would stand here earlier
  };

  Rank num_ranks() const { return static_cast<Rank>(steps_.ranks.size()); }
  Stand& stand_of(Rank rank) { return stands_[as_index(rank)]; }
  Place place_of(Rank rank) { return {rank, stand_of(rank).position}; }

  // To the rank's end, or to a transfer that has to wait for the other rank or for its turn.
  void advance(Rank rank) {
    Stand& stand = stand_of(rank);
    for (; stand.position < steps_.num_steps(rank); ++stand.position, stand.sends = false) {
      const Place place = place_of(rank);
      Step& step = steps_.at(place);
      if (!stand.sends) {
        if (step.start == kNotSent) {
          if (step.before.exists()) meet(step.before);
          return;
        }
        compute(place);
      }
      if (!step.reader.exists()) continue;
      if (waits_for_message(step.reader)) {
        meet(place);
      } else {
        steps_.at(step.reader).before = place;  // the sender that waits for it
      }
      return;
    }
  }

  void compute(Place place) {
    Stand& stand = stand_of(place.rank);
    Step& step = steps_.at(place);
    step.before = stand.cause;
    step.start = stand.clock;
    step.end = step.start + steps_.duration_at(place);
    stand.clock = step.end;
    stand.cause = place;
    stand.sends = true;
  }

  bool waits_for_message(Place reader) {
    return place_of(reader.rank) == reader && !stand_of(reader.rank).sends;
  }

  void meet(Place sender) {
    const double ready =
        std::max(stand_of(sender.rank).clock, stand_of(steps_.at(sender).reader.rank).clock);
    meetings_.emplace(ready, sender.rank);
  }

  void transfer(Place sender) {
    const Rank destination = steps_.at(sender).reader.rank;
    Stand& from = stand_of(sender.rank);
    Stand& to = stand_of(destination);
    const Place cause = from.clock >= to.clock ? from.cause : to.cause;
    const Transmission sent = steps_.send(network_, sender, std::max(from.clock, to.clock), cause);
    for (Stand* stand : {&from, &to}) {
      stand->clock = sent.arrived;
      stand->cause = sent.cause;
    }
    ++from.position;
    from.sends = false;
    advance(destination);
    advance(sender.rank);
  }

  Steps& steps_;
  Network network_;
  std::vector<Stand> stands_;  // by rank
  // Transfers whose ranks both stand before them: since when, and the source.
  using Meeting = std::pair<double, Rank>;
  std::priority_queue<Meeting, std::vector<Meeting>, std::greater<>> meetings_;
};

}  // namespace

void run_blocking(Steps& steps) { BlockingRun(steps).run(); }

}  // namespace pipert

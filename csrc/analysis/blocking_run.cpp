#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>

#include "analysis/steps.h"
#include "analysis/transfers.h"
#include "base/index.h"

namespace pipert {
namespace {

class BlockingRun {
 public:
  explicit BlockingRun(Steps& steps)
      : steps_(steps),
        network_(steps.costs, steps.schedule.num_ranks()),
        stands_(steps.ranks.size()),
        posted_(steps.ranks.size()) {}

  bool run() {
    for (Rank rank = 0; rank < num_ranks(); ++rank) advance(rank);
    while (!meetings_.empty()) {
      const Meeting next = meetings_.top();
      meetings_.pop();
      transfer(next.sender, next.reader);
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
    int open = 0;         // transfers that it has to get through first: sends, receives or both
    double came = 0.0;    // when it came here
    Place came_by;        // the step without which it would have come earlier
    double leaves = 0.0;  // when all transfers so far are through
    Place leaves_by;      // likewise
  };

  // A transfer to which both of its ranks have come.
  struct Meeting {
    double since = 0.0;
    std::int64_t number = 0;  // among a step's messages in their order
    Place sender;
    Place reader;

    friend bool operator>(const Meeting& a, const Meeting& b) {
      return std::tie(a.since, a.sender.rank, a.number) >
             std::tie(b.since, b.sender.rank, b.number);
    }
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
    steps_.for_each_reader(sender, [&](Place reader) {
      ++stand.open;
      if (stand_of(reader.rank).next == reader.position) {
        meet(sender, reader);
      } else {
        posted_[as_index(reader.rank)].push_back({sender, reader});
      }
    });
  }

  // Of what the step behind this place needs.
  void begin_receive(Rank rank) {
    Stand& stand = stand_of(rank);
    if (stand.next == steps_.num_steps(rank)) return;
    stand.open += steps_.num_awaited({rank, stand.next});
    auto& posted = posted_[as_index(rank)];
    for (auto each = posted.begin(); each != posted.end();) {
      if (each->receiver.position == stand.next) {
        meet(each->sender, each->receiver);
        each = posted.erase(each);
      } else {
        ++each;
      }
    }
  }

  void meet(Place sender, Place reader) {
    meetings_.push({std::max(stand_of(sender.rank).came, stand_of(reader.rank).came), num_met_++,
                    sender, reader});
  }

  void transfer(Place sender, Place reader) {
    Stand& from = stand_of(sender.rank);
    Stand& to = stand_of(reader.rank);
    const Stand& later = from.came >= to.came ? from : to;
    const Transmission sent = steps_.send(network_, sender, reader, later.came, later.came_by);
    for (Stand* stand : {&from, &to}) {
      --stand->open;
      if (sent.arrived <= stand->leaves) continue;
      stand->leaves = sent.arrived;
      stand->leaves_by = sent.cause;
    }
    for (const Rank rank : {reader.rank, sender.rank}) {
      if (stand_of(rank).open == 0) advance(rank);
    }
  }

  Steps& steps_;
  Network network_;
  std::vector<Stand> stands_;                  // by rank
  std::vector<std::vector<Transfer>> posted_;  // by rank: what others send to its later steps
  std::priority_queue<Meeting, std::vector<Meeting>, std::greater<>> meetings_;
  std::int64_t num_met_ = 0;
};

}  // namespace

bool run_blocking(Steps& steps) { return BlockingRun(steps).run(); }

}  // namespace pipert

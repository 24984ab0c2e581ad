// LaneOrder: the order of each rank's actions, written so that a scheduler can change and clock it
// a hundred thousand times a second.
//
// F, I and W of each stage are lanes, each of which takes the microbatches in order; so a rank's
// order is a list of lanes, and every list that has each lane m times is complete.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "ir/schedule.h"
#include "schedule/workload.h"

namespace pipert {

// 3 x (which of the rank's stages, ascending) + 0 for F, 1 for I, 2 for W.
using LaneCode = std::uint16_t;
using LaneOrder = std::vector<std::vector<LaneCode>>;  // by rank

inline constexpr LaneCode kForwardLane = 0;
inline constexpr LaneCode kInputLane = 1;
inline constexpr LaneCode kWeightLane = 2;

// Of a complete schedule, overlapped pairs taken apart; a B is its I, then its W: the same, but
// that the gradient leaves earlier. nullopt if it has other actions, two copies of the model, or a
// lane that doesn't take the microbatches in order.
std::optional<LaneOrder> lane_order_of(const Schedule& schedule);

Schedule to_schedule(const LaneOrder& order, const Workload& workload, std::string name);

struct OrderTimes {
  double makespan = 0.0;      // from 0 to the last end
  double longest_span = 0.0;  // of a rank, first start to last end
  double sum_of_ends = 0.0;   // over the ranks
};

// What is above a limit need not be clocked to its end.
struct OrderLimit {
  double span = std::numeric_limits<double>::infinity();
  double end = std::numeric_limits<double>::infinity();
};

// Clocks orders of one workload as simulate() does, with asynchronous messages that don't share
// their links. Holds the memory for it, so that a run allocates nothing.
class OrderClock {
 public:
  // Keeps `workload`, which must outlive it.
  explicit OrderClock(const Workload& workload);

  // Whether a rank's list keeps I behind its F, W behind its I, and the rank within its limit.
  bool keeps_limits(Rank rank, const std::vector<LaneCode>& lanes);

  // nullopt if the ranks wait for each other, or if some rank passes a limit. REQUIRES lists that
  // are complete and keep I behind F.
  std::optional<OrderTimes> run(const LaneOrder& order, const OrderLimit& limit = {});

 private:
  // One lane of one rank.
  struct Lane {
    double length = 0.0;
    double delay = 0.0;   // until another lane can read what it makes
    int reads = -1;       // the lane, counted over all ranks, whose data it reads; -1: none, or own
    int read_by = -1;     // the lane on another rank, or own, that reads what it makes
    Rank reader = -1;     // its rank
    std::size_t end = 0;  // where the ends of its microbatches begin in ends_
  };

  struct Clock {
    double free_at = 0.0;
    double began_at = 0.0;
    double idle = 0.0;  // so far, after its first start
    std::size_t position = 0;
    int waits_for = -1;  // a lane, counted over all ranks
  };

  bool advance(Rank rank, const std::vector<LaneCode>& lanes, const OrderLimit& limit);

  const Workload& workload_;
  std::vector<double> work_;  // by rank
  std::vector<Lane> lanes_;
  std::vector<std::size_t> first_lane_;  // by rank
  std::vector<int> counts_;              // by lane: how many have run
  std::vector<double> arrivals_;         // by lane and microbatch: when its result can be read
  std::vector<Clock> clocks_;            // by rank
  std::vector<Rank> ready_;
};

}  // namespace pipert

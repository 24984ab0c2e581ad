// greedy: list scheduling of F, I and W under a memory limit, for any placement of one copy of the
// model. A pure function.
//
// Each rank, as soon as it is free, takes what its rules put first among the forwards and input
// halves whose data is there and for which there is room. If there is none it takes the oldest
// weight half, where the gap is long enough for it or a forward waits for the room that it makes;
// else it waits for the next message. Every lane (a kind of a stage) takes the microbatches in
// order.
//
// Note [Room for what comes next]
//
// A rank with several stages could fill its memory with forwards of the first of them, and then
// have none for the forward of the last, without which nothing ever comes back. So a forward of its
// k-th stage starts only if, for each l >= k, what the stages up to the l-th hold leaves room for
// one activation of each stage after the l-th. The oldest microbatch that is not done then always
// goes on: it holds nothing yet on a stage that it comes to, nor do younger ones on that or a later
// stage of the rank, and what the stages before hold leaves room. So the scheduler ends, whatever
// the rules say, if every limit is at least the sum of one activation of each stage of the rank;
// with less no schedule ends, since the backward of a microbatch passes the last stage first.
#pragma once

#include <vector>

#include "schedule/lane_order.h"
#include "schedule/workload.h"

namespace pipert {

// Of the actions that can run the one with the smallest place is taken: offset + period x
// microbatch. A W is started in a gap of at least its patience times its length.
struct GreedyRules {
  std::vector<int> depth;              // by stage: most F ahead of its I; at least 1
  std::vector<double> forward_offset;  // by stage
  std::vector<double> input_offset;    // by stage
  double period = 0.0;
  double patience = 1.0;               // while the rank has forwards to come
  std::vector<double> drain_patience;  // after that, by rank
  double last_patience = 1.0;          // while one I of the rank is left, for which all others wait
};

struct GreedyOrder {
  LaneOrder lanes;
  OrderTimes times;
};

// REQUIRES vectors of the right shapes, and limits of at least one activation of each stage of the
// rank.
GreedyOrder schedule_greedily(const Workload& workload, const GreedyRules& rules);

}  // namespace pipert

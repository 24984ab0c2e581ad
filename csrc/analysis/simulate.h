// simulate: runs a schedule under given costs, on paper. Deterministic; O(actions).
//
// A rank does its actions one after another, each as soon as its inputs are there. A message
// between two ranks leaves when its sender is done and arrives latency + bytes / bandwidth later;
// neither rank is held up meanwhile, and messages don't share the bandwidth. Inside a rank it is
// there at once. In a lowered schedule a message leaves at its SEND; UNSHARD, RESHARD and
// REDUCE_GRAD take no time. An overlapped pair is its forward, then its backward.
#pragma once

#include <vector>

#include "analysis/timeline.h"
#include "ir/schedule.h"

namespace pipert {

// Times in any one unit (the Python face uses seconds). Each vector has one entry, or one for each
// stage.
struct Costs {
  std::vector<double> forward = {1.0};
  std::vector<double> input = {1.0};   // the I half of backward; B costs input + weight
  std::vector<double> weight = {1.0};  // the W half
  double latency = 0.0;                // of one message between ranks, asynchronous
  double bandwidth = 0.0;              // bytes for each unit of time; 0: infinite
  std::vector<double> bytes = {
      0.0};  // of one activation out of each stage; its gradient takes as many
};

// A schedule of forwards alone is taken as an inference schedule. Throws ValueError for costs that
// don't fit the schedule, and for a schedule that verify() rejects.
Timeline simulate(const Schedule& schedule, const Costs& costs);

}  // namespace pipert

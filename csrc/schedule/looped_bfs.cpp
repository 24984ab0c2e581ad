// Looped BFS (Lamy-Poirier 2022, arXiv:2211.05953): v chunks a rank, rank r owns the stages r, r+p,
// r+2p, ...; chunk after chunk runs all its forwards, then all chunks and microbatches run their
// backwards in reverse.
//
// p = 2 ranks, v = 2 chunks, m = 3 microbatches, B as long as F; "2F0" is stage 2, microbatch 0:
//
//   rank 0: 0F0 0F1 0F2 2F0 2F1 2F2 .   .   2B2 2B1 2B0 0B2 0B1 0B0
//   rank 1: .   1F0 1F1 1F2 3F0 3F1 3F2 3B2 3B1 3B0 1B2 1B1 1B0 .
//
// Bubble, for m >= p: (p-1)(F+B)/v beyond m(F+B), F and B being the times of v chunks. Peak
// activations: vm of one chunk each on every rank. All microbatches of a stage run together, so
// that parameters which are sharded over replicas are gathered twice for each stage and their
// gradients reduced once.

#include "base/index.h"
#include "schedule/looped_frame.h"

namespace pipert {
namespace {

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = looped_frame("looped_bfs", request);
  const int num_stages = schedule.num_stages();
  const int num_ranks = request.num_ranks;
  const Microbatch end = request.num_microbatches;
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    auto& actions = schedule.ranks[as_index(rank)];
    actions.reserve(2 * as_index(num_stages / num_ranks) * as_index(end));
    for (StageIndex stage = rank; stage < num_stages; stage += num_ranks) {
      for (Microbatch m = 0; m < end; ++m) actions.push_back(forward(stage, m));
    }
    for (StageIndex stage = num_stages - num_ranks + rank; stage >= 0; stage -= num_ranks) {
      for (Microbatch m = end - 1; m >= 0; --m) actions.push_back(backward(stage, m));
    }
  }
  return schedule;
}

}  // namespace

extern const Generator kLoopedBfs;
const Generator kLoopedBfs{
    .name = "looped_bfs",
    .summary = "all forwards chunk by chunk, then all backwards; for sharded parameters",
    .options = {},
    .build = build};

}  // namespace pipert

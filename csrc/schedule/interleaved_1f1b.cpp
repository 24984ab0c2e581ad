// Interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2, figure 4 below): v chunks
// a rank, rank r owns the stages r, r+p, r+2p, ...; a group of g microbatches passes through chunk
// 0, then through chunk 1, ... Groups of another size than p are Megatron's
// microbatch_group_size_per_vp_stage.
//
// p = 2 ranks, v = 2 chunks, g = 2, m = 4 microbatches, B as long as F; "2F0" is stage 2,
// microbatch 0:
//
//   rank 0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 .   2B2 .   2B3 0B2 0B3
//   rank 1: .   1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 .
//
// Warmup of rank r: 2(p-1-r) + (v-1)g forwards. Bubble: (p-1)(F+B)/v beyond m(F+B), F and B being
// the times of v chunks. Peak activations of rank r: (v-1)g + 2(p-1-r) + 1 of one chunk each.

#include <algorithm>
#include <array>

#include "base/index.h"
#include "schedule/looped_frame.h"
#include "schedule/turns.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 1> kOptions = {kGroupSize};

std::vector<Action> rank_actions(const Schedule& frame, const std::vector<Turn>& turns, Rank rank,
                                 int group_size) {
  const int num_ranks = frame.num_ranks();
  const int last_chunk = frame.num_stages() / num_ranks - 1;
  const auto stage = [&](int chunk) { return chunk * num_ranks + rank; };
  const std::size_t warmup =
      std::min(turns.size(),
               2 * as_index(num_ranks - 1 - rank) + as_index(last_chunk) * as_index(group_size));
  std::vector<Action> actions;
  actions.reserve(2 * turns.size());
  for (std::size_t turn = 0; turn < turns.size() + warmup; ++turn) {
    if (turn < turns.size()) {
      actions.push_back(forward(stage(turns[turn].chunk), turns[turn].microbatch));
    }
    if (turn >= warmup) {
      const Turn& done = turns[turn - warmup];
      actions.push_back(backward(stage(last_chunk - done.chunk), done.microbatch));
    }
  }
  return actions;
}

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = looped_frame("interleaved_1f1b", request);
  const int group_size = group_size_of(request);
  const int num_chunks = schedule.num_stages() / request.num_ranks;
  const auto turns = interleaved_turns(num_chunks, request.num_microbatches, group_size);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] = rank_actions(schedule, turns, rank, group_size);
  }
  return schedule;
}

}  // namespace

extern const Generator kInterleaved1F1B;
const Generator kInterleaved1F1B{
    .name = "interleaved_1f1b",
    .summary = "1F1B over several stages a rank; a smaller bubble for more transfers",
    .options = kOptions,
    .build = build};

}  // namespace pipert

// Interleaved zero bubble: interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2)
// with the split backwards of ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1), as PyTorch's
// ScheduleInterleavedZeroBubble: v chunks a rank, groups of g microbatches as interleaved_1f1b
// takes them, and weight halves that wait r turns on rank r. With v = 1 it is zb_h1.
//
// p = 2 ranks, v = 2 chunks, g = 2, m = 2 microbatches, F, I and W of the same length; "2F0" is
// stage 2, microbatch 0:
//
//   rank 0: 0F0 0F1 2F0 2F1 .   2I0 2W0 2I1 2W1 0I0 0W0 0I1 0W1
//   rank 1: .   1F0 1F1 3F0 3I0 3F1 3I1 3W0 1I0 3W1 1I1 1W0 1W1
//
// Warmup of rank r: (v-1)g + p-1-r forwards, p-1-r fewer than interleaved 1F1B. Bubble, with F, I
// and W the times of v chunks and W <= F: (p-1)(F+I-W)/v beyond m(F+I+W). Peak activations, each
// alive until its W: min(vm, (v-1)g + p) of one chunk each on every rank.

#include <array>

#include "base/index.h"
#include "schedule/delayed_weights.h"
#include "schedule/looped_frame.h"
#include "schedule/turns.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 1> kOptions = {kGroupSize};

std::vector<Action> rank_actions(const Schedule& frame, const std::vector<Turn>& turns, Rank rank,
                                 int group_size) {
  const int num_ranks = frame.num_ranks();
  const int last_chunk = frame.num_stages() / num_ranks - 1;
  std::vector<Action> forwards;
  std::vector<Action> backwards;
  forwards.reserve(turns.size());
  backwards.reserve(turns.size());
  for (const Turn& turn : turns) {
    forwards.push_back(forward(turn.chunk * num_ranks + rank, turn.microbatch));
    backwards.push_back(backward((last_chunk - turn.chunk) * num_ranks + rank, turn.microbatch));
  }
  const std::size_t warmup =
      as_index(last_chunk) * as_index(group_size) + as_index(num_ranks - 1 - rank);
  return delay_weights(forwards, backwards, warmup, as_index(rank));
}

Schedule build(const ScheduleRequest& request) {
  Schedule schedule = looped_frame("zb_interleaved", request);
  const int group_size = group_size_of(request);
  const int num_chunks = schedule.num_stages() / request.num_ranks;
  const auto turns = interleaved_turns(num_chunks, request.num_microbatches, group_size);
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] = rank_actions(schedule, turns, rank, group_size);
  }
  return schedule;
}

}  // namespace

extern const Generator kZbInterleaved;
const Generator kZbInterleaved{
    .name = "zb_interleaved",
    .summary = "interleaved 1F1B with split backwards: a smaller bubble for more transfers",
    .options = kOptions,
    .build = build};

}  // namespace pipert

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

#include "base/error.h"
#include "base/index.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 1> kOptions = {"group_size"};

struct Shape {
  int num_ranks = 0;
  int num_chunks = 0;  // v: chunks of each rank
  int num_microbatches = 0;
  int group_size = 0;
};

// One turn of a rank: a chunk, counted from 0 on each rank, and a microbatch.
struct Turn {
  int chunk = 0;
  Microbatch microbatch = 0;
};

void require_group_size(std::int64_t group_size, int num_ranks, int num_microbatches) {
  if (group_size < num_ranks || group_size > num_microbatches) {
    throw ValueError(concat("group_size must be at least ", num_ranks, " (num_ranks) and at most ",
                            num_microbatches, " (num_microbatches), got ", group_size));
  }
  // A last group of fewer microbatches than ranks would leave the ranks waiting for each other.
  const std::int64_t last = num_microbatches % group_size;
  if (last != 0 && last < num_ranks) {
    throw ValueError(concat("num_microbatches must leave a last group of 0 or at least ", num_ranks,
                            " (num_ranks) microbatches, got ", num_microbatches, " % ", group_size,
                            " (group_size) = ", last));
  }
}

Shape shape_of(const ScheduleRequest& request) {
  const int num_ranks = request.num_ranks;
  const int num_stages = request.num_stages == 0 ? 2 * num_ranks : request.num_stages;
  if (num_stages % num_ranks != 0) {
    throw ValueError(
        concat("num_stages must be a multiple of ", num_ranks, " (num_ranks), got ", num_stages));
  }
  if (request.num_microbatches < num_ranks) {
    throw ValueError(concat("num_microbatches must be at least ", num_ranks, " (num_ranks), got ",
                            request.num_microbatches));
  }
  const std::int64_t group_size = request.option("group_size", num_ranks);
  require_group_size(group_size, num_ranks, request.num_microbatches);
  return {.num_ranks = num_ranks,
          .num_chunks = num_stages / num_ranks,
          .num_microbatches = request.num_microbatches,
          .group_size = static_cast<int>(group_size)};
}

// The order of the forwards, the same on every rank: group by group, chunk-major inside a group.
std::vector<Turn> forward_turns(const Shape& shape) {
  std::vector<Turn> turns;
  turns.reserve(as_index(shape.num_chunks) * as_index(shape.num_microbatches));
  for (int left = shape.num_microbatches; left > 0; left -= shape.group_size) {
    const Microbatch begin = shape.num_microbatches - left;
    const Microbatch end = begin + std::min(left, shape.group_size);
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      for (Microbatch m = begin; m < end; ++m) turns.push_back({chunk, m});
    }
  }
  return turns;
}

std::size_t warmup_of(const Shape& shape, Rank rank) {
  return 2 * as_index(shape.num_ranks - 1 - rank) +
         as_index(shape.num_chunks - 1) * as_index(shape.group_size);
}

// The backwards take the same turns, through the chunks in reverse.
std::vector<Action> rank_actions(const Shape& shape, const std::vector<Turn>& turns, Rank rank) {
  const auto stage = [&](int chunk) { return chunk * shape.num_ranks + rank; };
  const std::size_t warmup = std::min(turns.size(), warmup_of(shape, rank));
  std::vector<Action> actions;
  actions.reserve(2 * turns.size());
  for (std::size_t turn = 0; turn < turns.size() + warmup; ++turn) {
    if (turn < turns.size()) {
      actions.push_back(forward(stage(turns[turn].chunk), turns[turn].microbatch));
    }
    if (turn >= warmup) {
      const Turn& done = turns[turn - warmup];
      actions.push_back(backward(stage(shape.num_chunks - 1 - done.chunk), done.microbatch));
    }
  }
  return actions;
}

Schedule build(const ScheduleRequest& request) {
  const Shape shape = shape_of(request);
  Schedule schedule{
      .name = "interleaved_1f1b",
      .num_microbatches = shape.num_microbatches,
      .placement = Placement::loop(shape.num_ranks, shape.num_ranks * shape.num_chunks),
      .ranks = {}};
  const std::vector<Turn> turns = forward_turns(shape);
  for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
    schedule.ranks.push_back(rank_actions(shape, turns, rank));
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

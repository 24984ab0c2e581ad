// Hanayo (Liu et al. 2023, arXiv:2308.15762): w waves. The stages run down the ranks and up again w
// times, 2w stages a rank; a wave turns round inside a rank, without a transfer.
//
// p = 2 ranks, w = 1 wave, m = 4 microbatches, B as long as F; rank r owns the stages r and 3-r:
//
//   rank 0: 0F0 0F1 .   3F0 3B0 3F1 3B1 0B0 0F2 0B1 0F3 3F2 3B2 3F3 3B3 0B2 .   0B3
//   rank 1: .   1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 1F2 2F2 1F3 2F3 2B2 1B2 2B3 1B3 .
//
// The microbatches go in groups of p. On each rank those on the way down (F of the stages that run
// down, then B of those that run up, last first) and those on the way up (the others) make two
// sequences, in which a group takes 2w stages x p actions; rank r begins with p-r of the first and
// goes on with one of the second and one of the first in turn. A last group that is not full is the
// full one without the microbatches that are not there.
//
// Bubble, with F and B the times of 2w stages, p | m and B >= F: (p-1)(B + (m/p-1)(B-F))/w beyond
// m(F+B); for B = F that is (p-1)(F+B)/2w whatever m is. Peak activations of rank r for m >= p:
// (2w-1)p+r+1 of one stage each, at most p with the 2w stages of a rank as the unit.
//
// The paper's bubble ratio (2p-2)/(3pw+p-1), for B = 2F and m = p, has this bubble, 4(p-1) forwards
// of one stage, over 6pw+2(p-1) of them: the busy time and half of the bubble. Over the makespan it
// is (2p-2)/(3pw+2p-2).

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/index.h"
#include "schedule/registry.h"

namespace pipert {
namespace {

constexpr std::array<std::string_view, 1> kOptions = {"num_waves"};

int num_waves_of(const ScheduleRequest& request) {
  const std::int64_t per_wave = std::int64_t{2} * request.num_ranks;
  const std::int64_t most = kMostActions / per_wave;
  const std::int64_t num_waves =
      request.option("num_waves", std::max<std::int64_t>(1, request.num_stages / per_wave));
  if (num_waves < 1 || num_waves > most) {
    throw ValueError(
        concat("num_waves must be at least 1 and at most ", most, ", got ", num_waves));
  }
  require_feasible(num_waves * per_wave, request.num_microbatches);
  if (request.num_stages != 0 && request.num_stages != num_waves * per_wave) {
    throw ValueError(concat("num_stages must be ", num_waves * per_wave,
                            " (2 x num_ranks x num_waves) for num_waves ", num_waves, ", got ",
                            request.num_stages));
  }
  return static_cast<int>(num_waves);
}

// An action of a sequence and its place there, counted as if the last group were full.
struct Placed {
  std::int64_t place = 0;
  Action action;
};

// One sequence of a rank: for each group of microbatches F of the stages of one way (0 is down, 1
// up), then B of those of the other, last first.
std::vector<Placed> sequence(std::span<const StageIndex> stages, int way, int num_ranks,
                             int num_microbatches) {
  std::vector<Placed> result;
  result.reserve(stages.size() * as_index(num_microbatches));
  std::int64_t place = 0;
  const auto add = [&](Action make(StageIndex, Microbatch), int chunk, Microbatch begin) {
    const int size = std::min(num_ranks, num_microbatches - begin);
    for (int i = 0; i < size; ++i) {
      result.push_back({place + i, make(stages[as_index(chunk)], begin + i)});
    }
    place += num_ranks;
  };
  const int num_chunks = static_cast<int>(stages.size());
  for (int left = num_microbatches; left > 0; left -= num_ranks) {
    const Microbatch begin = num_microbatches - left;
    for (int chunk = way; chunk < num_chunks; chunk += 2) add(forward, chunk, begin);
    for (int chunk = num_chunks - 1 - way; chunk >= 0; chunk -= 2) add(backward, chunk, begin);
  }
  return result;
}

std::vector<Action> rank_actions(const Schedule& frame, Rank rank) {
  const int num_ranks = frame.num_ranks();
  const auto stages = frame.placement.stages_of(rank);
  const auto down = sequence(stages, 0, num_ranks, frame.num_microbatches);
  const auto up = sequence(stages, 1, num_ranks, frame.num_microbatches);
  const int ahead = num_ranks - rank;
  std::vector<Action> actions;
  actions.reserve(down.size() + up.size());
  auto next = down.begin();
  for (const Placed& each : up) {
    while (next != down.end() && next->place < each.place + ahead) {
      actions.push_back((next++)->action);
    }
    actions.push_back(each.action);
  }
  for (; next != down.end(); ++next) actions.push_back(next->action);
  return actions;
}

Schedule build(const ScheduleRequest& request) {
  const int num_waves = num_waves_of(request);
  Schedule schedule{
      .name = "hanayo",
      .num_microbatches = request.num_microbatches,
      .placement = Placement::v_shaped(request.num_ranks, 2 * num_waves * request.num_ranks),
      .ranks = {}};
  schedule.ranks.resize(as_index(request.num_ranks));
  for (Rank rank = 0; rank < request.num_ranks; ++rank) {
    schedule.ranks[as_index(rank)] = rank_actions(schedule, rank);
  }
  return schedule;
}

}  // namespace

extern const Generator kHanayo;
const Generator kHanayo{
    .name = "hanayo",
    .summary = "waves down the ranks and up again; a smaller bubble with each wave",
    .options = kOptions,
    .build = build};

}  // namespace pipert

#include "ir/placement.h"

#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

void require_multiple(int num_ranks, int num_stages) {
  if (num_ranks < 1) throw ValueError(concat("num_ranks must be at least 1, got ", num_ranks));
  if (num_stages < 1 || num_stages % num_ranks != 0) {
    throw ValueError(concat("num_stages must be a positive multiple of ", num_ranks,
                            " (num_ranks), got ", num_stages));
  }
}

}  // namespace

Placement::Placement(int num_ranks, std::vector<Rank> rank_of, int num_copies)
    : rank_of_(std::move(rank_of)), num_copies_(num_copies) {
  if (num_ranks < 1) throw ValueError(concat("num_ranks must be at least 1, got ", num_ranks));
  if (rank_of_.size() > as_index(kMaxIndex)) throw ValueError("a placement of too many stages");
  if (rank_of_.size() < as_index(num_ranks)) {
    throw ValueError(
        concat("num_stages must be at least ", num_ranks, " (num_ranks), got ", rank_of_.size()));
  }
  if (num_copies < 1 || num_stages() % num_copies != 0) {
    throw ValueError(concat("num_copies must divide the number of stages, ", num_stages(), ", got ",
                            num_copies));
  }
  stages_of_.resize(as_index(num_ranks));
  for (StageIndex stage = 0; stage < num_stages(); ++stage) {
    const Rank rank = rank_of_[as_index(stage)];
    if (rank < 0 || rank >= num_ranks) {
      throw ValueError(
          concat("the rank of stage ", stage, " must be in [0, ", num_ranks, "), got ", rank));
    }
    stages_of_[as_index(rank)].push_back(stage);
  }
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    if (stages_of_[as_index(rank)].empty()) {
      throw ValueError(concat("every rank must own a stage, rank ", rank, " owns none"));
    }
  }
}

Placement Placement::loop(int num_ranks, int num_stages) {
  require_multiple(num_ranks, num_stages);
  std::vector<Rank> rank_of(as_index(num_stages));
  for (StageIndex stage = 0; stage < num_stages; ++stage)
    rank_of[as_index(stage)] = stage % num_ranks;
  return Placement(num_ranks, std::move(rank_of));
}

Placement Placement::v_shaped(int num_ranks, int num_stages) {
  require_multiple(num_ranks, num_stages);
  std::vector<Rank> rank_of(as_index(num_stages));
  for (StageIndex stage = 0; stage < num_stages; ++stage) {
    const Rank step = stage % num_ranks;
    const bool downward = stage / num_ranks % 2 == 0;
    rank_of[as_index(stage)] = downward ? step : num_ranks - 1 - step;
  }
  return Placement(num_ranks, std::move(rank_of));
}

Placement Placement::bidirectional(int num_ranks) {
  require_multiple(num_ranks, num_ranks);
  std::vector<Rank> rank_of(2 * as_index(num_ranks));
  for (StageIndex stage = 0; stage < num_ranks; ++stage) {
    rank_of[as_index(stage)] = stage;
    rank_of[as_index(num_ranks + stage)] = num_ranks - 1 - stage;
  }
  return Placement(num_ranks, std::move(rank_of), 2);
}

Rank Placement::rank_of(StageIndex stage) const {
  if (stage < 0 || stage >= num_stages()) {
    throw IndexError(concat("stage must be in [0, ", num_stages(), "), got ", stage));
  }
  return rank_of_[as_index(stage)];
}

std::span<const StageIndex> Placement::stages_of(Rank rank) const {
  if (rank < 0 || rank >= num_ranks()) {
    throw IndexError(concat("rank must be in [0, ", num_ranks(), "), got ", rank));
  }
  return stages_of_[as_index(rank)];
}

}  // namespace pipert

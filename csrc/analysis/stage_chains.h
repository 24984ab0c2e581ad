// StageChains: how soon an action can start after a first forward, and how much must follow it, by
// the chain of stages alone (Note [Proofs of the bounds]). Immutable.
#pragma once

#include <optional>
#include <vector>

#include "ir/placement.h"
#include "ir/stage_times.h"

namespace pipert {

// F, I or W of one stage.
struct ChainedLane {
  double length = 0.0;
  double head = 0.0;  // it starts no sooner after the window's start
  double tail = 0.0;  // it ends no later before the window's end
};

class StageChains {
 public:
  // The window begins with a forward of `origin`, before which no stage from there on has run, and
  // ends when all W of `rank` are done; nullopt: of all ranks.
  StageChains(const Placement& placement, const StageTimes& times, StageIndex origin,
              std::optional<Rank> rank);

  StageIndex origin() const { return origin_; }
  // REQUIRES stage >= origin().
  double forward_head(StageIndex stage) const { return forward_head_[at(stage)]; }
  double input_head(StageIndex stage) const { return input_head_[at(stage)]; }
  // From the end of its I; nullopt if no W that the window waits for comes after it.
  std::optional<double> input_tail(StageIndex stage) const { return input_tail_[at(stage)]; }
  // From the end of F of a stage to the start of its I, of the same microbatch.
  double round_trip(StageIndex stage) const { return round_trip_[at(stage)]; }

  // The lanes of a rank whose actions are inside the window.
  std::vector<ChainedLane> lanes_of(Rank rank) const;

 private:
  static std::size_t at(StageIndex stage) { return static_cast<std::size_t>(stage); }
  bool waits_for(StageIndex stage) const { return !rank_ || placement_.rank_of(stage) == *rank_; }

  const Placement& placement_;
  const StageTimes& times_;
  StageIndex origin_;
  std::optional<Rank> rank_;
  // Each of shape (num_stages,).
  std::vector<double> forward_head_;
  std::vector<double> input_head_;
  std::vector<double> round_trip_;
  std::vector<double> forward_tail_;
  std::vector<std::optional<double>> input_tail_;
};

}  // namespace pipert

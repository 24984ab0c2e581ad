// Placement: which rank owns which stage. An immutable value.
#pragma once

#include <span>
#include <vector>

#include "ir/action.h"

namespace pipert {

class Placement {
 public:
  Placement() = default;

  // rank_of[stage] is the owner of `stage`. Every rank in [0, num_ranks) must own a stage. Throws
  // ValueError otherwise.
  Placement(int num_ranks, std::vector<Rank> rank_of);

  // Stage s on rank s % num_ranks. num_stages must be a positive multiple of num_ranks.
  static Placement loop(int num_ranks, int num_stages);
  // Up and down again: stage s on rank s for s < p, then p-1, p-2, ...; num_stages a multiple of
  // num_ranks.
  static Placement v_shaped(int num_ranks, int num_stages);

  int num_ranks() const { return static_cast<int>(stages_of_.size()); }
  int num_stages() const { return static_cast<int>(rank_of_.size()); }
  // Throws IndexError if there is no such stage.
  Rank rank_of(StageIndex stage) const;
  // Ascending. Throws IndexError if there is no such rank.
  std::span<const StageIndex> stages_of(Rank rank) const;
  std::span<const Rank> ranks() const { return rank_of_; }

  friend bool operator==(const Placement&, const Placement&) = default;

 private:
  std::vector<Rank> rank_of_;                       // shape (num_stages,)
  std::vector<std::vector<StageIndex>> stages_of_;  // by rank
};

}  // namespace pipert

// Placement: which rank owns which stage, and how many copies of the model there are. An immutable
// value.
//
// Note [Copies of the model]
//
// A bidirectional schedule holds each stage's weights twice, so that one half of the microbatches
// can run the other way. Its stages are those of the first copy, then those of the second:
// of 2n stages, s and n + s are the same piece of the model, and their gradients are summed before
// the optimizer's step. Data flows from stage to stage inside a copy; a microbatch passes one copy,
// the one in which it has its forwards.
#pragma once

#include <span>
#include <vector>

#include "ir/action.h"

namespace pipert {

class Placement {
 public:
  Placement() = default;

  // rank_of[stage] is the owner of `stage`. Every rank in [0, num_ranks) must own a stage, and
  // `num_copies` must divide the number of stages. Throws ValueError otherwise.
  Placement(int num_ranks, std::vector<Rank> rank_of, int num_copies = 1);

  // Stage s on rank s % num_ranks. num_stages must be a positive multiple of num_ranks.
  static Placement loop(int num_ranks, int num_stages);
  // Up and down again: stage s on rank s for s < p, then p-1, p-2, ...; num_stages a multiple of
  // num_ranks.
  static Placement v_shaped(int num_ranks, int num_stages);
  // Two copies of one stage a rank: stage s of the first on rank s, of the second on rank p-1-s.
  static Placement bidirectional(int num_ranks);

  int num_ranks() const { return static_cast<int>(stages_of_.size()); }
  int num_stages() const { return static_cast<int>(rank_of_.size()); }
  int num_copies() const { return num_copies_; }
  // Stages of one copy.
  int stages_per_copy() const { return num_copies_ == 0 ? 0 : num_stages() / num_copies_; }
  // Whether the stage is where its copy begins, or ends. REQUIRES a stage in range.
  bool is_first(StageIndex stage) const { return stage % stages_per_copy() == 0; }
  bool is_last(StageIndex stage) const { return (stage + 1) % stages_per_copy() == 0; }
  // Throws IndexError if there is no such stage.
  Rank rank_of(StageIndex stage) const;
  // Ascending. Throws IndexError if there is no such rank.
  std::span<const StageIndex> stages_of(Rank rank) const;
  std::span<const Rank> ranks() const { return rank_of_; }

  friend bool operator==(const Placement&, const Placement&) = default;

 private:
  std::vector<Rank> rank_of_;                       // shape (num_stages,)
  std::vector<std::vector<StageIndex>> stages_of_;  // by rank
  int num_copies_ = 1;
};

}  // namespace pipert

// FoldedCuts: the exact cuts of placements whose stages go up and down again.
//
// Note [Cuts from both ends]
//
// Let stages k and S-1-k be pair k, and let no rank have stages of two pairs: one stage a rank, a
// V, or two copies of the model that run opposite ways. Whether the first k pairs fit then depends
// on two numbers alone: how many layers their front stages hold (i), and how many their back stages
// do (j). For a given work that no rank may exceed, the states (i, j) that can be reached are found
// pair by pair from the ends to the middle, where front and back must meet. From a state, each
// number of layers in the front stage leaves a range of numbers for the back stage, 1 to the most
// that fits, since more layers never take less: a state costs O(n), not O(n^2). States whose rest
// is more than the ranks that are left can do are dropped, so few are looked at when the work is
// close to the least. That least is found by bisection.
#pragma once

#include <optional>
#include <vector>

#include "search/loads.h"

namespace pipert {

class FoldedCuts {
 public:
  // Whether no rank has stages of two pairs.
  static bool is_for(const Placement& placement);

  // REQUIRES is_for(loads.placement()). `loads` must stay.
  explicit FoldedCuts(const Loads& loads);

  // Cuts that keep the limits, with at most so much work on each rank; empty if there are none.
  Cuts within(double longest) const;

 private:
  // A stage of a rank: of which end of a pair, and the index that measures go by.
  struct Use {
    StageIndex stage;
    bool is_front;
  };
  struct Owner {
    Rank rank;
    std::vector<Use> uses;
  };
  // Where the two stages of a pair begin and end.
  struct Chunks {
    int front_begin, front_end, back_begin, back_end;
  };
  // [front layers][back layers]: whether the pairs so far can hold just these.
  using States = std::vector<std::vector<char>>;

  bool fits(int pair, const Chunks& chunks, double longest) const;
  States next_states(int pair, const States& states, double longest) const;
  std::optional<Chunks> closing(int front, int back, double longest) const;
  void trace_back(const std::vector<States>& states, int front, int back, double longest,
                  Cuts& cuts) const;
  bool rest_fits(int pair, int front, int back, double longest) const;
  int num_whole_pairs() const { return (num_stages_ - 1) / 2; }  // those before the middle

  const Loads& loads_;
  int num_stages_;
  int num_layers_;
  std::vector<std::vector<Owner>> owners_;  // by pair
  std::vector<double> ranks_left_;          // by pair: of it and those further in, for each copy
};

}  // namespace pipert

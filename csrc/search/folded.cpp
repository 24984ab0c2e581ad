#include "search/folded.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr double kRounding = 1.0 + 1e-9;

int pair_of(int piece, int num_stages) { return std::min(piece, num_stages - 1 - piece); }

}  // namespace

bool FoldedCuts::is_for(const Placement& placement) {
  const int num_stages = placement.stages_per_copy();
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    const auto stages = placement.stages_of(rank);
    const int pair = pair_of(stages.front() % num_stages, num_stages);
    for (const StageIndex stage : stages) {
      if (pair_of(stage % num_stages, num_stages) != pair) return false;
    }
  }
  return true;
}

FoldedCuts::FoldedCuts(const Loads& loads)
    : loads_(loads),
      num_stages_(loads.placement().stages_per_copy()),
      num_layers_(loads.work().num_layers()),
      owners_(as_index(num_stages_ + 1) / 2),
      ranks_left_(owners_.size(), 0.0) {
  const Placement& placement = loads.placement();
  for (Rank rank = 0; rank < placement.num_ranks(); ++rank) {
    Owner owner{.rank = rank, .uses = {}};
    int piece = 0;
    for (const StageIndex stage : placement.stages_of(rank)) {
      piece = stage % num_stages_;
      owner.uses.push_back({.stage = stage, .is_front = 2 * piece < num_stages_});
    }
    owners_[as_index(pair_of(piece, num_stages_))].push_back(std::move(owner));
  }
  double left = 0.0;
  for (std::size_t pair = owners_.size(); pair-- > 0;) {
    left += static_cast<double>(owners_[pair].size()) / placement.num_copies();
    ranks_left_[pair] = left;
  }
}

Cuts FoldedCuts::within(double longest) const {
  const auto size = as_index(num_layers_) + 1;
  std::vector<States> states = {States(size, std::vector<char>(size, 0))};
  states[0][0][0] = 1;
  for (int pair = 0; pair < num_whole_pairs(); ++pair) {
    states.push_back(next_states(pair, states.back(), longest));
  }
  for (int front = 0; front <= num_layers_; ++front) {
    for (int back = 0; front + back < num_layers_; ++back) {
      if (!states.back()[as_index(front)][as_index(back)]) continue;
      const auto middle = closing(front, back, longest);
      if (!middle) continue;
      Cuts cuts(as_index(num_stages_), 0);
      const int pair = num_whole_pairs();
      cuts[as_index(pair)] = middle->front_end - middle->front_begin;
      if (num_stages_ % 2 == 0) cuts[as_index(pair) + 1] = middle->back_end - middle->back_begin;
      trace_back(states, front, back, longest, cuts);
      return cuts;
    }
  }
  return {};
}

bool FoldedCuts::fits(int pair, const Chunks& chunks, double longest) const {
  return std::ranges::all_of(owners_[as_index(pair)], [&](const Owner& owner) {
    double work = 0.0;
    double held = 0.0;
    for (const Use& use : owner.uses) {
      const int begin = use.is_front ? chunks.front_begin : chunks.back_begin;
      const int end = use.is_front ? chunks.front_end : chunks.back_end;
      work += loads_.work().of(use.stage, begin, end);
      held += loads_.held().of(use.stage, begin, end);
    }
    return work <= longest && loads_.keeps_limit(owner.rank, held);
  });
}

FoldedCuts::States FoldedCuts::next_states(int pair, const States& states, double longest) const {
  const auto size = as_index(num_layers_) + 1;
  // [front][back]: ranges that begin there, less those that have ended before.
  std::vector<std::vector<int>> ranges(size, std::vector<int>(size + 1, 0));
  const int stages_within = num_stages_ - 2 * (pair + 1);
  for (int front = 0; front <= num_layers_; ++front) {
    for (int back = 0; front + back <= num_layers_; ++back) {
      if (!states[as_index(front)][as_index(back)]) continue;
      const int back_end = num_layers_ - back;
      int most = num_layers_;  // layers of the back stage: fewer with each one more in front
      for (int end = front + 1; end < back_end - stages_within; ++end) {
        most = std::min(most, back_end - end - stages_within);
        while (most > 0 && !fits(pair, {front, end, back_end - most, back_end}, longest)) --most;
        if (most == 0) break;
        auto& row = ranges[as_index(end)];
        ++row[as_index(back) + 1];
        --row[as_index(back + most) + 1];
      }
    }
  }
  States next(size, std::vector<char>(size, 0));
  for (int front = 0; front <= num_layers_; ++front) {
    int open = 0;
    for (int back = 0; back <= num_layers_; ++back) {
      open += ranges[as_index(front)][as_index(back)];
      next[as_index(front)][as_index(back)] =
          open > 0 && rest_fits(pair + 1, front, back, longest) ? 1 : 0;
    }
  }
  return next;
}

bool FoldedCuts::rest_fits(int pair, int front, int back, double longest) const {
  return loads_.work().least(front, num_layers_ - back) <=
         ranks_left_[as_index(pair)] * longest * kRounding;
}

std::optional<FoldedCuts::Chunks> FoldedCuts::closing(int front, int back, double longest) const {
  const int pair = num_whole_pairs();
  const int back_end = num_layers_ - back;
  if (num_stages_ % 2 == 1) {
    const Chunks whole{front, back_end, back_end, back_end};
    return fits(pair, whole, longest) ? std::optional(whole) : std::nullopt;
  }
  for (int middle = front + 1; middle < back_end; ++middle) {
    const Chunks chunks{front, middle, middle, back_end};
    if (fits(pair, chunks, longest)) return chunks;
  }
  return std::nullopt;
}

void FoldedCuts::trace_back(const std::vector<States>& states, int front, int back, double longest,
                            Cuts& cuts) const {
  const auto came_from = [&](int pair) {
    for (int i = front - 1; i >= 0; --i) {
      for (int j = back - 1; j >= 0; --j) {
        if (!states[as_index(pair)][as_index(i)][as_index(j)]) continue;
        const Chunks chunks{i, front, num_layers_ - back, num_layers_ - j};
        if (fits(pair, chunks, longest)) return std::pair(i, j);
      }
    }
    throw InternalError("cuts from both ends: expected a state before this one, found none");
  };
  for (int pair = num_whole_pairs(); pair-- > 0;) {
    const auto [i, j] = came_from(pair);
    cuts[as_index(pair)] = front - i;
    cuts[as_index(num_stages_ - 1 - pair)] = back - j;
    front = i;
    back = j;
  }
}

}  // namespace pipert

#include "schedule/v_pattern.h"

#include <array>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/index.h"
#include "schedule/halves.h"
#include "schedule/v_frame.h"

namespace pipert {
namespace {

constexpr int kPeriod = 6;

// The actions of a rank in rows, one for each kind and chunk; each row takes the microbatches in
// order.
enum Row : std::uint8_t { kF0, kF1, kI1, kI0, kW1, kW0 };
constexpr std::array<Row, kPeriod> kRows = {kF0, kF1, kI1, kI0, kW1, kW0};

using Starts = std::array<int, kPeriod>;           // by row: of microbatch 0, in the pattern
using Progress = std::array<Microbatch, kPeriod>;  // by row: the next microbatch

// Each weight half takes the first place after its input half that is free in every period; where
// both would take the same one, the later has the next.
Starts with_weights(const VStarts& starts) {
  std::array<bool, kPeriod> taken = {};
  const auto place = [&](int time) -> bool& { return taken[as_index(time % kPeriod)]; };
  for (const int time : {starts.forward_0, starts.forward_1, starts.input_1, starts.input_0}) {
    place(time) = true;
  }
  const auto first_free = [&](int time) {
    do ++time;
    while (place(time));
    return time;
  };
  int weight_1 = first_free(starts.input_1);
  int weight_0 = first_free(starts.input_0);
  if ((weight_1 - weight_0) % kPeriod == 0) {
    place(weight_1) = true;
    const bool first_is_later = weight_0 - starts.input_0 < weight_1 - starts.input_1;
    int& later = first_is_later ? weight_0 : weight_1;
    later = first_free(later);
  }
  return {starts.forward_0, starts.forward_1, starts.input_1, starts.input_0, weight_1, weight_0};
}

class Repetition {
 public:
  Repetition(Schedule frame, VStarts (*starts)(Rank, int), int peak)
      : schedule_(std::move(frame)),
        num_ranks_(schedule_.num_ranks()),
        end_(schedule_.num_microbatches),
        peak_(peak),
        progress_(as_index(num_ranks_)) {
    for (Rank rank = 0; rank < num_ranks_; ++rank) {
      starts_.push_back(with_weights(starts(rank, num_ranks_)));
      schedule_.ranks[as_index(rank)].reserve(as_index(kPeriod) * as_index(end_));
    }
  }

  // Time by time. Whether a rank can go on depends on itself and its neighbours: where none of them
  // did anything the last time, it still can't.
  Schedule run() && {
    struct Chosen {
      Rank rank = 0;
      Row row = kF0;
    };
    std::vector<Chosen> chosen;
    std::vector<Rank> candidates(as_index(num_ranks_));
    std::iota(candidates.begin(), candidates.end(), 0);
    std::int64_t left = std::int64_t{kPeriod} * num_ranks_ * end_;
    while (left > 0) {
      chosen.clear();
      for (const Rank rank : candidates) {
        if (const auto row = choose(rank)) chosen.push_back({rank, *row});
      }
      if (chosen.empty()) throw InternalError(concat(schedule_.name, ": no rank can go on"));
      candidates.clear();
      for (const auto& [rank, row] : chosen) {
        take(rank, row);
        --left;
        for (const Rank other : {rank - 1, rank, rank + 1}) {  // ascending, each once
          const bool is_new = candidates.empty() || candidates.back() < other;
          if (is_new && other >= 0 && other < num_ranks_) candidates.push_back(other);
        }
      }
    }
    return std::move(schedule_);
  }

 private:
  // Of the actions that can run now, the first in the pattern. Once a rank has begun all
  // microbatches nothing waits for the room that its weight halves make: they come last.
  std::optional<Row> choose(Rank rank) const {
    const bool weights_last = next(rank, kF0) == end_;
    std::optional<Row> best;
    std::pair<bool, int> earliest;
    for (const Row row : kRows) {
      if (next(rank, row) == end_ || !can_run(rank, row)) continue;
      const std::pair<bool, int> when = {weights_last && row >= kW1, planned(rank, row)};
      if (best && earliest < when) continue;
      best = row;
      earliest = when;
    }
    return best;
  }

  bool can_run(Rank rank, Row row) const {
    const Microbatch m = next(rank, row);
    const bool first = rank == 0;
    const bool last = rank == num_ranks_ - 1;
    switch (row) {
      case kF0:
        return (first || next(rank - 1, kF0) > m) && has_room(rank) && !overtakes(rank, kF0, kI1);
      case kF1:
        return (last ? next(rank, kF0) > m : next(rank + 1, kF1) > m) && has_room(rank);
      case kI1:
        return next(rank, kF1) > m && (first || next(rank - 1, kI1) > m);
      case kI0:
        return next(rank, kF0) > m && (last ? next(rank, kI1) > m : next(rank + 1, kI0) > m);
      case kW1:
        return next(rank, kI1) > m;
      case kW0:
        return next(rank, kI0) > m;
    }
    return false;
  }

  bool has_room(Rank rank) const {
    return next(rank, kF0) - next(rank, kW0) + next(rank, kF1) - next(rank, kW1) < peak_;
  }

  // Whether the next of `row` would run before the next of `other`, against the pattern. A forward
  // that overtakes takes the room from what the rank needs to go on.
  bool overtakes(Rank rank, Row row, Row other) const {
    return next(rank, other) < end_ && planned(rank, other) < planned(rank, row);
  }

  void take(Rank rank, Row row) {
    const StageIndex stage_0 = rank;
    const StageIndex stage_1 = 2 * num_ranks_ - 1 - rank;
    const Microbatch m = progress_[as_index(rank)][row]++;
    const auto action = [&] {
      switch (row) {
        case kF0:
          return forward(stage_0, m);
        case kF1:
          return forward(stage_1, m);
        case kI1:
          return input_half(stage_1, m);
        case kI0:
          return input_half(stage_0, m);
        case kW1:
          return weight_half(stage_1, m);
        case kW0:
          return weight_half(stage_0, m);
      }
      return Action{};
    };
    schedule_.ranks[as_index(rank)].push_back(action());
  }

  Microbatch next(Rank rank, Row row) const { return progress_[as_index(rank)][row]; }
  int planned(Rank rank, Row row) const {
    return starts_[as_index(rank)][row] + kPeriod * next(rank, row);
  }

  Schedule schedule_;
  int num_ranks_;
  Microbatch end_;
  int peak_;
  std::vector<Starts> starts_;      // by rank
  std::vector<Progress> progress_;  // by rank
};

}  // namespace

Schedule repeat_pattern(std::string_view name, const ScheduleRequest& request,
                        VStarts (*starts)(Rank rank, int num_ranks), int peak) {
  return Repetition(v_frame(name, request), starts, peak).run();
}

}  // namespace pipert

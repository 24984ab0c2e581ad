#include "plan/clocks.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <ranges>

#include "analysis/walk.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

constexpr Rank kLandmark = 0;
constexpr int kNever = std::numeric_limits<int>::max();

// Rank 0, and the ranks that `rank` sends to or receives from, ascending. `is_seen`: by rank, all
// false; left so.
std::vector<Rank> some_tracked(const Dataflow& dataflow, Rank rank, std::vector<bool>& is_seen) {
  std::vector<Rank> peers;
  if (rank != kLandmark) {
    is_seen[as_index(kLandmark)] = true;
    peers.push_back(kLandmark);
  }
  const auto see = [&](Rank other) {
    if (other == rank || is_seen[as_index(other)]) return;
    is_seen[as_index(other)] = true;
    peers.push_back(other);
  };
  const int size = static_cast<int>(dataflow.runs(rank).size());
  for (int i = 0; i < size; ++i) {
    for (const DeliveryId id : dataflow.reads_of({rank, i})) see(dataflow.delivery(id).writer.rank);
    for (const Delivery& delivery : dataflow.writes_of({rank, i})) see(delivery.reader.rank);
  }
  for (const Rank peer : peers) is_seen[as_index(peer)] = false;
  std::sort(peers.begin(), peers.end());
  return peers;
}

std::vector<Rank> all_but(Rank rank, int num_ranks) {
  std::vector<Rank> others;
  for (Rank other = 0; other < num_ranks; ++other) {
    if (other != rank) others.push_back(other);
  }
  return others;
}

std::vector<int> sizes_of(const Dataflow& dataflow) {
  std::vector<int> sizes;
  for (Rank rank = 0; rank < dataflow.num_ranks(); ++rank) {
    sizes.push_back(static_cast<int>(dataflow.runs(rank).size()));
  }
  return sizes;
}

std::size_t column_of(const std::vector<Rank>& tracked, Rank rank) {
  const auto found = std::lower_bound(tracked.begin(), tracked.end(), rank);
  return static_cast<std::size_t>(found - tracked.begin());
}

}  // namespace

Clocks::Clocks(const Dataflow& dataflow, int track_all)
    : tracks_all_(dataflow.num_ranks() <= track_all), ranks_(as_index(dataflow.num_ranks())) {
  track(dataflow);
  fill(dataflow);
  if (!tracks_all_) find_heard(dataflow);
}

void Clocks::track(const Dataflow& dataflow) {
  const int num_ranks = dataflow.num_ranks();
  std::vector<bool> is_seen(as_index(num_ranks), false);
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    RankClocks& clocks = ranks_[as_index(rank)];
    clocks.tracked = tracks_all_ ? all_but(rank, num_ranks) : some_tracked(dataflow, rank, is_seen);
    clocks.started.resize(dataflow.runs(rank).size() * clocks.tracked.size(), 0);
  }
}

// From the first Runs to the last.
void Clocks::fill(const Dataflow& dataflow) {
  const std::vector<int> num_runs = sizes_of(dataflow);
  std::vector<int> num_done(num_runs.size());
  const auto done = walk(
      num_runs,
      [&](Rank rank, int position) -> std::optional<Wait> {
        for (const DeliveryId id : dataflow.reads_of({rank, position})) {
          const Place writer = dataflow.delivery(id).writer;
          if (writer.rank != rank && num_done[as_index(writer.rank)] <= writer.position)
            return Wait{writer.rank, writer.position + 1};
        }
        return std::nullopt;
      },
      [&](Rank rank, int position) {
        const Place run{rank, position};
        if (position > 0) inherit(run);
        for (const DeliveryId id : dataflow.reads_of(run)) {
          const Place writer = dataflow.delivery(id).writer;
          if (writer.rank != rank) learn_from(writer, run);
        }
        num_done[as_index(rank)] = position + 1;
      });
  if (done != num_runs) throw InternalError("a schedule that verify() accepted can't be ordered");
}

// From the last Runs to the first: rank 0 hears of a Run through the one behind it on the same
// rank, or through those that read its result.
void Clocks::find_heard(const Dataflow& dataflow) {
  const std::vector<int> num_runs = sizes_of(dataflow);
  for (const int size : num_runs) heard_.emplace_back(as_index(size), kNever);
  const auto at = [&](Rank rank, int step) {
    return Place{rank, num_runs[as_index(rank)] - 1 - step};
  };
  const auto heard = [&](Place run) -> int& {
    return heard_[as_index(run.rank)][as_index(run.position)];
  };
  std::vector<int> num_done(num_runs.size());
  walk(
      num_runs,
      [&](Rank rank, int step) -> std::optional<Wait> {
        for (const Delivery& delivery : dataflow.writes_of(at(rank, step))) {
          const Place reader = delivery.reader;
          const int steps = num_runs[as_index(reader.rank)] - reader.position;
          if (reader.rank != rank && num_done[as_index(reader.rank)] < steps)
            return Wait{reader.rank, steps};
        }
        return std::nullopt;
      },
      [&](Rank rank, int step) {
        const Place run = at(rank, step);
        if (step > 0) heard(run) = heard({rank, run.position + 1});
        for (const Delivery& delivery : dataflow.writes_of(run))
          heard(run) = std::min(heard(run), heard(delivery.reader));
        if (rank == kLandmark) heard(run) = run.position;
        num_done[as_index(rank)] = step + 1;
      });
}

std::span<int> Clocks::row(Place run) {
  RankClocks& clocks = ranks_[as_index(run.rank)];
  const std::size_t width = clocks.tracked.size();
  return std::span(clocks.started).subspan(as_index(run.position) * width, width);
}

void Clocks::inherit(Place run) {
  const auto before = row({run.rank, run.position - 1});
  std::copy(before.begin(), before.end(), row(run).begin());
}

void Clocks::learn_from(Place producer, Place run) {
  const auto& theirs = ranks_[as_index(producer.rank)].tracked;
  const auto& ours = ranks_[as_index(run.rank)].tracked;
  const auto known = row(producer);
  const auto clock = row(run);
  for (std::size_t i = 0, j = 0; i < theirs.size() && j < ours.size();) {
    if (theirs[i] == ours[j]) {
      clock[j] = std::max(clock[j], known[i]);
      ++i, ++j;
    } else if (theirs[i] < ours[j]) {
      ++i;
    } else {
      ++j;
    }
  }
  int& started = clock[column_of(ours, producer.rank)];
  started = std::max(started, producer.position + 1);
}

int Clocks::known_received(Place producer, Place consumer) const {
  const RankClocks& clocks = ranks_[as_index(producer.rank)];
  const std::size_t width = clocks.tracked.size();
  const std::size_t column = column_of(clocks.tracked, consumer.rank);
  const auto num_runs = static_cast<int>(clocks.started.size() / width);
  const int heard =
      tracks_all_ ? kNever : heard_[as_index(consumer.rank)][as_index(consumer.position)];
  const auto knows = [&](int position) {
    const int* row = &clocks.started[as_index(position) * width];
    if (row[column] > consumer.position) return true;
    return (producer.rank == kLandmark ? position : row[0] - 1) >= heard;  // row[0]: of rank 0
  };
  // Clocks only grow along a rank, so the first Run that knows is found by bisection.
  const auto after = std::views::iota(producer.position + 1, num_runs);
  const auto found = std::ranges::partition_point(after, std::not_fn(knows));
  return producer.position + 1 + static_cast<int>(found - after.begin());
}

}  // namespace pipert

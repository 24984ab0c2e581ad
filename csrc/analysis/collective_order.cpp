#include "analysis/collective_order.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// Which stages share weights: sets that grow together.
class Sharing {
 public:
  explicit Sharing(int num_stages) : above_(as_index(num_stages)) {
    std::iota(above_.begin(), above_.end(), 0);
  }
  void join(StageIndex a, StageIndex b) { above_[as_index(first_of(b))] = first_of(a); }
  StageIndex first_of(StageIndex stage) {
    while (above_[as_index(stage)] != stage) {
      StageIndex& above = above_[as_index(stage)];
      above = above_[as_index(above)];
      stage = above;
    }
    return stage;
  }

 private:
  std::vector<StageIndex> above_;  // by stage
};

std::vector<std::vector<StageIndex>> groups_of(const Placement& placement,
                                               const VerifyOptions& options) {
  if (placement.num_copies() == 1 && options.tied_stages.empty()) return {};
  Sharing sharing(placement.num_stages());
  const int per_copy = placement.stages_per_copy();
  for (StageIndex stage = per_copy; stage < placement.num_stages(); ++stage) {
    sharing.join(stage % per_copy, stage);
  }
  for (const auto& group : options.tied_stages) {
    for (const StageIndex stage : group) sharing.join(group.front(), stage);
  }
  std::map<StageIndex, std::vector<StageIndex>> by_first;
  for (StageIndex stage = 0; stage < placement.num_stages(); ++stage) {
    by_first[sharing.first_of(stage)].push_back(stage);
  }
  std::vector<std::vector<StageIndex>> groups;
  for (auto& [first, group] : by_first) {
    if (group.size() > 1) groups.push_back(std::move(group));
  }
  return groups;
}

Action reduce_of(StageIndex stage) { return {.kind = ActionKind::kReduceGrad, .stage = stage}; }

}  // namespace

Collectives::Collectives(const Schedule& schedule, const VerifyOptions& options)
    : schedule_(schedule), groups_(groups_of(schedule.placement, options)) {
  if (groups_.empty()) return;
  reductions_.resize(as_index(schedule.num_stages()));
  for (Rank rank = 0; rank < schedule.num_ranks(); ++rank) {
    const auto& actions = schedule.ranks[as_index(rank)];
    for (int i = 0; i < static_cast<int>(actions.size()); ++i) {
      const Action& action = actions[as_index(i)];
      if (action.kind != ActionKind::kReduceGrad) continue;
      reductions_[as_index(action.stage)].push_back({rank, i});
    }
  }
}

Verdict Collectives::check() const {
  const Verdict verdict = check_members();
  return verdict.ok() ? check_order(all()) : verdict;
}

Verdict Collectives::check_members() const {
  const auto less_often = [this](StageIndex a, StageIndex b) {
    return reductions_[as_index(a)].size() < reductions_[as_index(b)].size();
  };
  for (const auto& group : groups_) {
    const auto [least, most] = std::minmax_element(group.begin(), group.end(), less_often);
    const std::size_t num_there = reductions_[as_index(*least)].size();
    if (num_there == reductions_[as_index(*most)].size()) continue;
    const Rank rank = schedule_.placement.rank_of(*least);
    const Place there = reductions_[as_index(*most)][num_there];
    const Action absent = reduce_of(*least);
    Verdict verdict{Defect::kMissing,
                    concat(to_string(absent), " is missing on rank ", rank, ": stages ", *least,
                           " and ", *most, " share weights, and ", to_string(action_at(there)),
                           " is on rank ", there.rank, " (position ", there.position, ")")};
    verdict.counterexample.add({rank, -1}, absent, Role::kAbsent, "missing");
    verdict.counterexample.add(there, action_at(there), Role::kRelated, "shares its weights");
    return verdict;
  }
  return {};
}

std::vector<Collective> Collectives::all() const {
  std::vector<Collective> collectives;
  for (const auto& group : groups_) {
    const std::size_t num_times = reductions_[as_index(group.front())].size();
    for (std::size_t n = 0; n < num_times; ++n) {
      std::map<Rank, Place> last;  // of each rank's parts: there it waits for the others
      for (const StageIndex stage : group) {
        const Place place = reductions_[as_index(stage)][n];
        Place& known = last.try_emplace(place.rank, place).first->second;
        if (place.position > known.position) known = place;
      }
      if (last.size() < 2) continue;
      Collective& collective = collectives.emplace_back();
      for (const auto& [rank, place] : last) collective.parts.push_back(place);
    }
  }
  return collectives;
}

// For each rank, its collectives in its own order, and for each other rank of one of them, whether
// it comes to them in ascending order too.
Verdict Collectives::check_order(const std::vector<Collective>& collectives) const {
  std::vector<std::vector<std::pair<int, const Collective*>>> by_rank(schedule_.ranks.size());
  for (const Collective& collective : collectives) {
    for (const Place& part : collective.parts) {
      by_rank[as_index(part.rank)].emplace_back(part.position, &collective);
    }
  }
  struct Last {
    Rank seen_by = -1;
    int position = -1;
    const Collective* collective = nullptr;
  };
  std::vector<Last> lasts(schedule_.ranks.size());
  for (Rank rank = 0; rank < schedule_.num_ranks(); ++rank) {
    auto& own = by_rank[as_index(rank)];
    if (own.size() < 2) continue;
    std::sort(own.begin(), own.end());
    for (const auto& [position, collective] : own) {
      for (const Place& part : collective->parts) {
        Last& last = lasts[as_index(part.rank)];
        if (last.seen_by == rank && part.position < last.position) {
          return different_order(rank, part.rank, *last.collective, *collective);
        }
        last = {rank, part.position, collective};
      }
    }
  }
  return {};
}

const Action& Collectives::action_at(Place place) const {
  return schedule_.ranks[as_index(place.rank)][as_index(place.position)];
}

Verdict Collectives::different_order(Rank rank, Rank other, const Collective& first,
                                     const Collective& second) const {
  const auto part_of = [](const Collective& collective, Rank of) {
    return *std::find_if(collective.parts.begin(), collective.parts.end(),
                         [of](const Place& part) { return part.rank == of; });
  };
  const Place places[] = {part_of(first, rank), part_of(second, rank), part_of(second, other),
                          part_of(first, other)};
  const auto name = [&](int i) { return to_string(action_at(places[i])); };
  Verdict verdict{Defect::kCollective,
                  concat("rank ", rank, " does ", name(0), " before ", name(1), ", rank ", other,
                         " ", name(2), " before ", name(3), ": ", name(0), " and ", name(3),
                         " are one collective, ", name(1), " and ", name(2), " another")};
  const char* notes[] = {"first", "then", "first", "then"};
  for (int i = 0; i < 4; ++i) {
    verdict.counterexample.add(places[i], action_at(places[i]), Role::kCulprit, notes[i]);
  }
  verdict.counterexample.waits = {{0, 3, WaitReason::kCollective}, {2, 1, WaitReason::kCollective}};
  return verdict;
}

void require_tied_stages(const Schedule& schedule, const VerifyOptions& options) {
  constexpr int none = -1;
  std::vector<int> group_of(as_index(schedule.num_stages()), none);
  for (int group = 0; group < static_cast<int>(options.tied_stages.size()); ++group) {
    for (const StageIndex stage : options.tied_stages[as_index(group)]) {
      if (stage < 0 || stage >= schedule.num_stages()) {
        throw ValueError(
            concat("tied_stages: stage must be in [0, ", schedule.num_stages(), "), got ", stage));
      }
      int& known = group_of[as_index(stage)];
      if (known != none) {
        throw ValueError(concat("tied_stages: stage ", stage,
                                " must be in one group, once, got it ",
                                known == group ? "twice in group " : "in groups ",
                                known == group ? concat(group) : concat(known, " and ", group)));
      }
      known = group;
    }
  }
}

}  // namespace pipert

#include "analysis/weight_versions.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

bool adds_gradient(ActionKind kind) {
  return kind == ActionKind::kBackward || kind == ActionKind::kWeightGrad;
}

bool has_updates(const Schedule& schedule) {
  return std::any_of(schedule.ranks.begin(), schedule.ranks.end(), [](const auto& actions) {
    return std::any_of(actions.begin(), actions.end(), [](const Action& action) {
      return action.kind == ActionKind::kUpdate || action.version != 0;
    });
  });
}

class VersionCheck {
 public:
  explicit VersionCheck(const Schedule& schedule)
      : schedule_(schedule),
        stages_(as_index(schedule.num_stages())),
        used_(as_index(schedule.num_stages()) * as_index(schedule.num_microbatches), 0) {}

  Verdict run() {
    for (rank_ = 0; rank_ < schedule_.num_ranks(); ++rank_) {
      const auto& actions = schedule_.ranks[as_index(rank_)];
      for (position_ = 0; position_ < static_cast<int>(actions.size()); ++position_) {
        Verdict verdict = step(actions[as_index(position_)]);
        if (!verdict.ok()) return verdict;
      }
    }
    return check_all_applied();
  }

 private:
  struct Stage {
    WeightVersion newest = 0;
    const Action* unapplied = nullptr;  // the last backward whose gradient is in no version yet
  };

  Verdict step(const Action& action) {
    Stage& stage = stages_[as_index(action.stage)];
    if (action.kind == ActionKind::kUpdate) return update(action, stage);
    if (!is_compute(action.kind)) return {};
    WeightVersion& used = used_[as_index(action.stage) * as_index(schedule_.num_microbatches) +
                                as_index(action.microbatch)];
    if (action.kind == ActionKind::kForward && action.slice <= 0) {
      if (action.version > stage.newest) {
        return found(action, concat("version ", action.version,
                                    " is not made yet, the newest one is ", stage.newest));
      }
      used = action.version;
    } else if (action.version != used) {
      return found(action, concat("it uses version ", action.version,
                                  " of the weights, the forward of its microbatch version ", used));
    }
    if (adds_gradient(action.kind)) stage.unapplied = &action;
    return {};
  }

  Verdict update(const Action& action, Stage& stage) const {
    if (action.version != stage.newest + 1) {
      return found(action, concat("expected version ", stage.newest + 1, " to be made, the newest ",
                                  "one is ", stage.newest));
    }
    if (stage.unapplied == nullptr) return found(action, "it has no gradient to apply");
    ++stage.newest;
    stage.unapplied = nullptr;
    return {};
  }

  Verdict check_all_applied() {
    for (StageIndex stage = 0; stage < schedule_.num_stages(); ++stage) {
      const Action* unapplied = stages_[as_index(stage)].unapplied;
      if (unapplied == nullptr) continue;
      rank_ = schedule_.placement.rank_of(stage);
      position_ = static_cast<int>(unapplied - schedule_.ranks[as_index(rank_)].data());
      return found(*unapplied, "no update after it applies its gradient");
    }
    return {};
  }

  Verdict found(const Action& action, std::string_view reason) const {
    Verdict verdict{Defect::kVersion, concat(to_string(action), " on rank ", rank_, ": ", reason)};
    verdict.counterexample.add({rank_, position_}, action, Role::kCulprit, std::string(reason));
    return verdict;
  }

  const Schedule& schedule_;
  std::vector<Stage> stages_;
  std::vector<WeightVersion> used_;  // shape (num_stages, num_microbatches), by the forward
  Rank rank_ = 0;
  int position_ = 0;
};

// The most versions of a rank's stages at once, in one pass over its actions.
int peak_of(const std::vector<Action>& actions) {
  using Key = std::pair<StageIndex, WeightVersion>;
  std::map<Key, const Action*> last_use;
  for (const Action& action : actions) {
    if (is_compute(action.kind)) last_use[{action.stage, action.version}] = &action;
  }
  struct Stage {
    WeightVersion newest = 0;
    std::set<WeightVersion> alive = {0};
  };
  std::map<StageIndex, Stage> stages;
  std::size_t peak = 1;
  const auto is_over = [&](StageIndex stage, WeightVersion version, const Action* now) {
    const auto last = last_use.find({stage, version});
    return last == last_use.end() || last->second <= now;
  };
  for (const Action& action : actions) {
    if (!is_compute(action.kind) && action.kind != ActionKind::kUpdate) continue;
    Stage& stage = stages[action.stage];
    if (action.kind == ActionKind::kUpdate) {
      stage.newest = action.version;
      stage.alive.insert(action.version);
    }
    std::erase_if(stage.alive, [&](WeightVersion version) {
      return version != stage.newest && is_over(action.stage, version, &action);
    });
    peak = std::max(peak, stage.alive.size());
  }
  return static_cast<int>(peak);
}

}  // namespace

Verdict check_versions(const Schedule& schedule) {
  return has_updates(schedule) ? VersionCheck(schedule).run() : Verdict{};
}

std::vector<int> peak_weight_versions(const Schedule& schedule) {
  if (!has_updates(schedule)) return std::vector<int>(schedule.ranks.size(), 1);
  std::vector<int> peaks;
  peaks.reserve(schedule.ranks.size());
  for (const auto& actions : schedule.ranks) peaks.push_back(peak_of(actions));
  return peaks;
}

}  // namespace pipert

#include "schedule/offload.h"

#include <map>
#include <set>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// The stages that are asked for, by index.
std::vector<bool> chosen_stages(const Schedule& schedule, const OffloadOptions& options) {
  const int num_stages = schedule.num_stages();
  if (!options.stages.has_value()) return std::vector<bool>(as_index(num_stages), true);
  std::vector<bool> chosen(as_index(num_stages), false);
  for (const StageIndex stage : *options.stages) {
    if (stage < 0 || stage >= num_stages)
      throw IndexError(concat("stages: expected indices in [0, ", num_stages, "), got ", stage));
    chosen[as_index(stage)] = true;
  }
  return chosen;
}

// Whether the action reads the activations that its F left.
bool reads_activations(const Action& action) {
  return action.kind == ActionKind::kBackward || action.kind == ActionKind::kInputGrad ||
         action.kind == ActionKind::kRecompute;
}

// The actions of one rank, with moves between them.
class RankOffload {
 public:
  RankOffload(const std::vector<Action>& actions, const std::vector<bool>& chosen, int ahead)
      : actions_(actions), chosen_(chosen), ahead_(ahead) {
    for (const Action& action : actions) {
      if (action.kind == ActionKind::kOffload) moved_already_.insert(forward_of(action));
    }
    for (std::size_t i = 0; i < actions.size(); ++i) {
      if (!is_compute(actions[i].kind)) continue;
      compute_.push_back(i);
      see(actions[i]);
    }
  }

  std::vector<Action> build() const {
    std::vector<Action> result;
    for (std::size_t i = 0; i < actions_.size(); ++i) {
      if (const auto found = reloads_.find(i); found != reloads_.end())
        result.insert(result.end(), found->second.begin(), found->second.end());
      result.push_back(actions_[i]);
      if (const auto found = offloads_.find(i); found != offloads_.end())
        result.push_back(found->second);
    }
    return result;
  }

 private:
  static Action forward_of(const Action& action) {
    Action name = as_kind(action, ActionKind::kForward);
    name.version = 0;
    return name;
  }

  // A schedule may name stages that aren't there.
  bool is_chosen(StageIndex stage) const {
    return stage >= 0 && as_index(stage) < chosen_.size() && chosen_[as_index(stage)];
  }

  void see(const Action& action) {
    if (action.kind == ActionKind::kOverlap) {
      see_part(overlapped_backward(action));
      see_part(overlapped_forward(action));
    } else {
      see_part(action);
    }
  }

  void see_part(const Action& action) {
    const std::size_t here = compute_.size() - 1;
    const Action name = forward_of(action);
    if (action.kind == ActionKind::kForward) {
      if (is_chosen(action.stage) && !moved_already_.contains(name)) made_[name] = here;
      return;
    }
    const auto made = made_.find(name);
    if (!reads_activations(action) || made == made_.end()) return;
    const std::size_t back = made->second + 1 + as_index(ahead_);  // the first place to reload at
    if (back < here) {
      offloads_[compute_[made->second]] = as_kind(name, ActionKind::kOffload);
      reloads_[compute_[here - as_index(ahead_)]].push_back(as_kind(name, ActionKind::kReload));
    }
    made_.erase(made);
  }

  const std::vector<Action>& actions_;
  const std::vector<bool>& chosen_;
  int ahead_;
  std::set<Action> moved_already_;                      // by F
  std::vector<std::size_t> compute_;                    // the places of compute actions so far
  std::map<Action, std::size_t> made_;                  // by F: its place in compute_
  std::map<std::size_t, Action> offloads_;              // by the action that they come behind
  std::map<std::size_t, std::vector<Action>> reloads_;  // by the action that they come before
};

}  // namespace

Schedule with_offload(const Schedule& schedule, const OffloadOptions& options) {
  if (options.ahead < 0) throw ValueError(concat("ahead must be at least 0, got ", options.ahead));
  const std::vector<bool> chosen = chosen_stages(schedule, options);
  Schedule result{.name = concat(schedule.name, "+offload"),
                  .num_microbatches = schedule.num_microbatches,
                  .num_slices = schedule.num_slices,
                  .placement = schedule.placement,
                  .ranks = {}};
  for (const auto& actions : schedule.ranks)
    result.ranks.push_back(RankOffload(actions, chosen, options.ahead).build());
  return result;
}

}  // namespace pipert

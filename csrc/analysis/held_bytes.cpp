#include "analysis/held_bytes.h"

#include <algorithm>
#include <optional>

#include "analysis/transfers.h"
#include "base/index.h"

namespace pipert {
namespace {

class HeldBySkips {
 public:
  explicit HeldBySkips(const Steps& steps)
      : steps_(steps), index_(steps.schedule), forms_(steps.schedule) {}

  HeldBytes run() {
    for (Rank rank = 0; rank < steps_.schedule.num_ranks(); ++rank) {
      rank_ = rank;
      changes_.assign(as_index(steps_.num_steps(rank)) + 1, 0.0);
      for (const MessageSpan& message : steps_.messages[as_index(rank)])
        add(maker_of(message.sender), message.arrived);
      for (int i = 0; i < steps_.num_steps(rank); ++i)
        add(steps_.action_at({rank, i}), steps_.at({rank, i}).end);
      put_sums();
    }
    return std::move(held_);
  }

 private:
  Action maker_of(Place sender) const {
    const Action& action = steps_.action_at(sender);
    return is_transfer(action) ? steps_.action_at(compute_of(action, index_)) : action;
  }

  // What `maker` made, and is there from `from` on.
  void add(const Action& maker, double from) {
    const auto kind = result_kind(maker.kind);
    if (!kind) return;
    const auto size = static_cast<StageIndex>(steps_.schedule.placement.stages_per_copy());
    const StageIndex first = maker.stage - maker.stage % size;
    for (const SkipCost& skip : steps_.costs.skips) {
      const bool down = skip.to.front() > skip.from;
      if (first + skip.from != maker.stage || down != (*kind == MessageKind::kActivation)) continue;
      std::optional<int> last;  // the farthest reader runs last
      for (const StageIndex to : skip.to) {
        const Place reader = reader_of(maker, first + to, index_, forms_);
        if (reader.rank == rank_) last = reader.position;
      }
      if (last) hold(skip.bytes / steps_.schedule.num_slices, from, *last);
    }
  }

  void hold(double bytes, double from, int last) {
    const auto& steps = steps_.ranks[as_index(rank_)];
    const auto begin = std::partition_point(steps.begin(), steps.end(),
                                            [&](const Step& step) { return step.end < from; });
    changes_[static_cast<std::size_t>(begin - steps.begin())] += bytes;
    changes_[as_index(last) + 1] -= bytes;
  }

  void put_sums() {
    auto& held = held_.emplace_back();
    double sum = 0.0;
    for (std::size_t i = 0; i + 1 < changes_.size(); ++i) held.push_back(sum += changes_[i]);
  }

  const Steps& steps_;
  ActionIndex index_;
  BackwardForms forms_;
  Rank rank_ = 0;
  std::vector<double> changes_;  // by step of the rank, and one more
  HeldBytes held_;
};

}  // namespace

HeldBytes held_by_skips(const Steps& steps) { return HeldBySkips(steps).run(); }

}  // namespace pipert

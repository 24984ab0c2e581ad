#include "analysis/stage_messages.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

namespace pipert {
namespace {

// What goes from one stage, to one side.
class Sender {
 public:
  Sender(const Costs& costs, const Placement& placement, MessageKind kind, StageIndex stage)
      : costs_(costs), placement_(placement), kind_(kind), stage_(stage) {
    const bool is_end = is_forward() ? placement.is_last(stage) : placement.is_first(stage);
    if (!is_end) neighbour_ = neighbour_of({.kind = kind, .stage = stage});
  }

  void put(std::vector<StageMessage>& messages) {
    const std::size_t first = messages.size();
    const auto add = [&](StageIndex reader) {
      const Rank rank = placement_.rank_of(reader);
      std::size_t i = first;
      while (i < messages.size() && messages[i].rank != rank) ++i;
      if (i == messages.size() && rank != placement_.rank_of(stage_))
        messages.push_back({.reader = reader, .rank = rank, .bytes = bytes_to(rank)});
    };
    if (neighbour_) add(*neighbour_);
    for (const StageIndex reader : skip_readers()) add(reader);
  }

 private:
  bool is_forward() const { return kind_ == MessageKind::kActivation; }
  // The first stage of this one's copy of the model.
  StageIndex first_of_copy() const {
    return stage_ - stage_ % static_cast<StageIndex>(placement_.stages_per_copy());
  }

  // visit(skip), for each of this stage to this side.
  template <typename Visit>
  void for_each_skip(Visit visit) const {
    for (const SkipCost& skip : costs_.skips) {
      const bool down = skip.to.front() > skip.from;
      if (skip.from == stage_ - first_of_copy() && down == is_forward()) visit(skip);
    }
  }

  // The nearest first.
  std::vector<StageIndex> skip_readers() const {
    std::vector<StageIndex> readers;
    for_each_skip([&](const SkipCost& skip) {
      for (const StageIndex to : skip.to) readers.push_back(first_of_copy() + to);
    });
    std::sort(readers.begin(), readers.end(), [&](StageIndex a, StageIndex b) {
      return std::abs(a - stage_) < std::abs(b - stage_);
    });
    return readers;
  }

  double bytes_to(Rank rank) const {
    double bytes = 0.0;
    if (neighbour_ && placement_.rank_of(*neighbour_) == rank)
      bytes += chain_bytes(kind_, stage_, costs_);
    for_each_skip([&](const SkipCost& skip) {
      const bool is_read = std::any_of(skip.to.begin(), skip.to.end(), [&](StageIndex to) {
        return placement_.rank_of(first_of_copy() + to) == rank;
      });
      if (is_read) bytes += skip.bytes;
    });
    return bytes;
  }

  const Costs& costs_;
  const Placement& placement_;
  MessageKind kind_;
  StageIndex stage_;
  std::optional<StageIndex> neighbour_;
};

}  // namespace

StageMessages::StageMessages(const Costs& costs, const Placement& placement) {
  for (const MessageKind kind : {MessageKind::kActivation, MessageKind::kGradient}) {
    auto& [begins, messages] = by_kind_[static_cast<std::size_t>(kind)];
    begins.reserve(as_index(placement.num_stages()) + 1);
    messages.reserve(as_index(placement.num_stages()));
    for (StageIndex stage = 0; stage < placement.num_stages(); ++stage) {
      begins.push_back(messages.size());
      Sender(costs, placement, kind, stage).put(messages);
    }
    begins.push_back(messages.size());
  }
}

}  // namespace pipert

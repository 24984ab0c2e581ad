#include "analysis/messages.h"

#include <algorithm>
#include <tuple>

namespace pipert {
namespace {

// What an action hands to another stage, or takes from one: the activation that comes out of a
// stage, or the gradient that a stage gives back for it.
struct Result {
  bool is_gradient = false;
  StageIndex stage = 0;
  Microbatch microbatch = 0;
  Slice slice = kWholeSequence;
  friend auto operator<=>(const Result&, const Result&) = default;
};

struct Made {
  Result result;
  Rank rank = 0;
  double end = 0.0;
};

bool is_gradient(ActionKind kind) { return kind != ActionKind::kForward; }

// W and R work with what is on their own rank.
bool is_local(ActionKind kind) {
  return kind == ActionKind::kWeightGrad || kind == ActionKind::kRecompute;
}

std::vector<Made> results_of(const Timeline& timeline) {
  std::vector<Made> made;
  for (const auto& spans : timeline.ranks) {
    for (const Span& span : spans) {
      const Action& action = span.action;
      if (is_local(action.kind)) continue;
      made.push_back({{is_gradient(action.kind), action.stage, action.microbatch, action.slice},
                      span.rank,
                      span.end});
    }
  }
  std::stable_sort(made.begin(), made.end(),
                   [](const Made& a, const Made& b) { return a.result < b.result; });
  return made;
}

Result read_by(const Action& action) {
  const bool gradient = is_gradient(action.kind);
  return {gradient, gradient ? action.stage + 1 : action.stage - 1, action.microbatch,
          action.slice};
}

}  // namespace

std::vector<MessageSpan> messages_of(const Timeline& timeline) {
  const std::vector<Made> made = results_of(timeline);
  std::vector<MessageSpan> messages;
  for (const auto& spans : timeline.ranks) {
    for (const Span& span : spans) {
      if (is_local(span.action.kind)) continue;
      const Result wanted = read_by(span.action);
      const auto found =
          std::lower_bound(made.begin(), made.end(), wanted,
                           [](const Made& each, const Result& key) { return each.result < key; });
      if (found == made.end() || found->result != wanted || found->rank == span.rank) continue;
      messages.push_back({wanted.is_gradient, found->rank, found->end, span.rank, span.start});
    }
  }
  return messages;
}

}  // namespace pipert

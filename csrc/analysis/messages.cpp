#include "analysis/messages.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/index.h"

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
  Place place;
};

// visit(span, its place, whether it deals in gradients), for each that makes or reads a message.
template <typename Visit>
void for_each_flow(const Timeline& timeline, Visit visit) {
  for (Rank rank = 0; rank < static_cast<Rank>(timeline.ranks.size()); ++rank) {
    int position = 0;
    for (const Span& span : timeline.ranks[as_index(rank)]) {
      const auto kind = result_kind(span.action.kind);
      const Place place{rank, position++};
      if (kind) visit(span, place, kind == MessageKind::kGradient);
    }
  }
}

std::vector<Made> results_of(const Timeline& timeline) {
  std::vector<Made> made;
  for_each_flow(timeline, [&](const Span& span, Place place, bool is_gradient) {
    const Action& action = span.action;
    made.push_back({{is_gradient, action.stage, action.microbatch, action.slice}, place});
  });
  std::stable_sort(made.begin(), made.end(),
                   [](const Made& a, const Made& b) { return a.result < b.result; });
  return made;
}

void require_span(const Timeline& timeline, Place place) {
  const auto is_below = [](int value, std::size_t end) {
    return value >= 0 && as_index(value) < end;
  };
  if (is_below(place.rank, timeline.ranks.size()) &&
      is_below(place.position, timeline.ranks[as_index(place.rank)].size()))
    return;
  throw ValueError(concat("a message's ends must be spans, (rank, position), got (", place.rank,
                          ", ", place.position, ")"));
}

}  // namespace

std::vector<MessageSpan> message_spans(const Timeline& timeline,
                                       const std::vector<SpanPair>& ends) {
  std::vector<MessageSpan> messages;
  messages.reserve(ends.size());
  for (const auto& [sender, reader] : ends) {
    require_span(timeline, sender);
    require_span(timeline, reader);
    if (sender.rank == reader.rank)
      throw ValueError(
          concat("a message must go from a rank to another, got two ends on ", sender.rank));
    const double sent = span_at(timeline, sender).end;
    messages.push_back({sender, reader, sent, sent, span_at(timeline, reader).start, {}, -1});
  }
  std::stable_sort(messages.begin(), messages.end(),
                   [](const MessageSpan& a, const MessageSpan& b) {
                     if (a.reader != b.reader)
                       return std::pair(a.reader.rank, a.reader.position) <
                              std::pair(b.reader.rank, b.reader.position);
                     return a.sent > b.sent;
                   });
  return messages;
}

std::vector<MessageSpan> messages_of(const Timeline& timeline) {
  if (!timeline.messages.empty()) return timeline.messages;
  const std::vector<Made> made = results_of(timeline);
  std::vector<SpanPair> ends;
  for_each_flow(timeline, [&](const Span& span, Place place, bool is_gradient) {
    const StageIndex stage = span.action.stage + (is_gradient ? 1 : -1);
    const Result wanted{is_gradient, stage, span.action.microbatch, span.action.slice};
    const auto found =
        std::lower_bound(made.begin(), made.end(), wanted,
                         [](const Made& each, const Result& key) { return each.result < key; });
    if (found == made.end() || found->result != wanted || found->place.rank == place.rank) return;
    ends.push_back({found->place, place});
  });
  return message_spans(timeline, ends);
}

bool is_gradient(const MessageSpan& message, const Timeline& timeline) {
  return span_at(timeline, message.sender).action.kind != ActionKind::kForward;
}

}  // namespace pipert

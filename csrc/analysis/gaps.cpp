#include "analysis/gaps.h"

#include <algorithm>
#include <string_view>

#include "analysis/messages.h"
#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// What may hold a rank up: one of its messages.
struct Hold {
  const MessageSpan* message = nullptr;
  bool sends = false;  // or takes
};

class GapSearch {
 public:
  explicit GapSearch(const Timeline& timeline)
      : timeline_(timeline), messages_(messages_of(timeline)), start_(first_start(timeline)) {
    const std::size_t num_ranks = timeline.ranks.size();
    holds_.resize(num_ranks);
    sent_by_.resize(num_ranks);
    for (std::size_t rank = 0; rank < num_ranks; ++rank) {
      sent_by_[rank].resize(timeline.ranks[rank].size());
    }
    for (const MessageSpan& message : messages_) {
      holds_[as_index(message.reader.rank)].push_back({&message, false});
      sent_by_[as_index(message.sender.rank)][as_index(message.sender.position)].push_back(
          &message);
      if (timeline.is_blocking) holds_[as_index(message.sender.rank)].push_back({&message, true});
    }
    if (!timeline.is_blocking) return;
    for (auto& holds : holds_) {
      std::stable_sort(holds.begin(), holds.end(), [](const Hold& a, const Hold& b) {
        return a.message->arrived < b.message->arrived;
      });
    }
  }

  std::vector<std::vector<Gap>> run() {
    std::vector<std::vector<Gap>> result;
    for (rank_ = 0; rank_ < static_cast<Rank>(timeline_.ranks.size()); ++rank_) {
      search_rank();
      result.push_back(std::move(gaps_));
      gaps_ = {};
    }
    return result;
  }

 private:
  void search_rank() {
    const auto& spans = timeline_.ranks[as_index(rank_)];
    now_ = start_;
    next_hold_ = 0;
    for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
      const Span& span = spans[as_index(i)];
      explain_until(span.start, i);
      put({GapReason::kUnknown, -1, {}}, span.start);
      now_ = std::max(now_, span.end);
    }
    explain_until(start_ + timeline_.makespan, static_cast<int>(spans.size()));
    put({GapReason::kDone, -1, {}}, start_ + timeline_.makespan);
  }

  // A rank whose transfers block is held by one after the other, between its actions; else by the
  // message that its next action, the `position`-th, reads.
  void explain_until(double end, int position) {
    const auto& holds = holds_[as_index(rank_)];
    for (; next_hold_ < holds.size(); ++next_hold_) {
      const Hold& hold = holds[next_hold_];
      const bool is_later = timeline_.is_blocking ? hold.message->arrived > end
                                                  : hold.message->reader.position > position;
      if (is_later) return;
      explain(hold, end);
    }
  }

  void explain(const Hold& hold, double end) {
    const MessageSpan& message = *hold.message;
    const double arrived = std::min(message.arrived, end);
    const Cause reader{GapReason::kReader, message.reader.rank, action_at(message.reader)};
    const Cause sender{GapReason::kProducer, message.sender.rank, action_at(message.sender)};
    put(hold.sends ? reader : sender, std::min(message.sent, arrived));
    put_queue(message, arrived);
    Cause transfer = hold.sends ? reader : sender;
    transfer.reason = hold.sends ? GapReason::kSending : GapReason::kTransfer;
    put(transfer, arrived);
  }

  // One gap for each message that was on the link while `message` waited for it.
  void put_queue(const MessageSpan& message, double end) {
    std::vector<const MessageSpan*> queue = {&message};
    while (queue.back()->ahead.exists() && queue.back()->begun > now_) {
      queue.push_back(sent_to(queue.back()->ahead, queue.back()->ahead_to));
    }
    for (std::size_t i = queue.size() - 1; i > 0; --i) {
      const Place busy = queue[i]->sender;
      put({GapReason::kLink, busy.rank, action_at(busy)}, std::min(queue[i - 1]->begun, end));
    }
  }

  const MessageSpan* sent_to(Place sender, Rank rank) const {
    const auto& sent = sent_by_[as_index(sender.rank)][as_index(sender.position)];
    return *std::find_if(sent.begin(), sent.end(),
                         [&](const MessageSpan* each) { return each->reader.rank == rank; });
  }

  struct Cause {
    GapReason reason = GapReason::kUnknown;
    Rank other = -1;
    Action action;
  };

  void put(const Cause& cause, double end) {
    if (end <= now_) return;
    gaps_.push_back({.rank = rank_,
                     .start = now_,
                     .end = end,
                     .reason = cause.reason,
                     .other = cause.other,
                     .action = cause.action});
    now_ = end;
  }

  const Action& action_at(Place place) const { return span_at(timeline_, place).action; }

  const Timeline& timeline_;
  std::vector<MessageSpan> messages_;
  double start_;
  std::vector<std::vector<Hold>> holds_;  // by rank, in the order of explain_until
  std::vector<std::vector<std::vector<const MessageSpan*>>> sent_by_;  // by rank, then by span
  Rank rank_ = 0;
  double now_ = 0.0;  // the rank's time before this is explained
  std::size_t next_hold_ = 0;
  std::vector<Gap> gaps_;
};

}  // namespace

std::vector<std::vector<Gap>> gaps_of(const Timeline& timeline) {
  return GapSearch(timeline).run();
}

std::string_view gap_reason_name(GapReason reason) {
  switch (reason) {
    case GapReason::kProducer:
      return "producer";
    case GapReason::kTransfer:
      return "transfer";
    case GapReason::kLink:
      return "link";
    case GapReason::kReader:
      return "reader";
    case GapReason::kSending:
      return "sending";
    case GapReason::kDone:
      return "done";
    case GapReason::kUnknown:
      return "unknown";
  }
  throw InternalError("a gap has a reason");
}

std::string to_string(const Gap& gap) {
  const std::string action = to_string(gap.action);
  switch (gap.reason) {
    case GapReason::kProducer:
      return concat("waits for ", action, " on rank ", gap.other);
    case GapReason::kTransfer:
      return concat("the message of ", action, " is on the way from rank ", gap.other);
    case GapReason::kLink:
      return concat("the link is busy with the message of ", action, " from rank ", gap.other);
    case GapReason::kReader:
      return concat("waits for rank ", gap.other, " to come to ", action);
    case GapReason::kSending:
      return concat("its message for ", action, " is on the way to rank ", gap.other);
    case GapReason::kDone:
      return "nothing is left to do";
    case GapReason::kUnknown:
      return "not for want of a message";
  }
  throw InternalError("a gap has a reason");
}

}  // namespace pipert

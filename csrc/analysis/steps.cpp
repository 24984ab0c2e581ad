#include "analysis/steps.h"

#include "analysis/action_index.h"
#include "analysis/transfers.h"
#include "base/index.h"

namespace pipert {

namespace {

double bytes_of(const Steps& steps, Place sender, Rank destination) {
  const Action& action = steps.action_at(sender);
  const bool is_forward =
      action.kind == ActionKind::kForward || action.kind == ActionKind::kSendForward;
  const MessageKind kind = is_forward ? MessageKind::kActivation : MessageKind::kGradient;
  return steps.stage_messages.bytes(kind, action.stage, destination) / steps.schedule.num_slices;
}

// In any order; those of one sender stay in theirs.
void put(const std::vector<Transfer>& transfers, Steps& steps) {
  for (const Transfer& transfer : transfers) {
    ++steps.at(transfer.sender).first_sent;  // their number, for now
    ++steps.at(transfer.receiver).num_awaited;
  }
  std::uint32_t end = 0;
  for (auto& of_rank : steps.ranks) {
    for (Step& step : of_rank) {
      end += step.first_sent;
      step.first_sent = end;
    }
    steps.ends_of_sent.push_back(end);
  }
  steps.readers.resize(transfers.size());
  for (auto transfer = transfers.rbegin(); transfer != transfers.rend(); ++transfer)
    steps.readers[--steps.at(transfer->sender).first_sent] = transfer->receiver;
}

}  // namespace

Place compute_of(const Action& transfer, const ActionIndex& index) {
  const bool is_activation =
      transfer.kind == ActionKind::kSendForward || transfer.kind == ActionKind::kRecvForward;
  if (is_activation) return index.find(as_kind(transfer, ActionKind::kForward));
  const Place whole = index.find(as_kind(transfer, ActionKind::kBackward));
  return whole.exists() ? whole : index.find(as_kind(transfer, ActionKind::kInputGrad));
}

Transmission Steps::send(Network& network, Place sender, Place reader, double ready, Place cause) {
  const Transmission sent = network.send({.edge = {sender.rank, reader.rank},
                                          .bytes = bytes_of(*this, sender, reader.rank),
                                          .ready = ready,
                                          .sender = sender,
                                          .cause = cause});
  Step& step = at(reader);
  --step.num_awaited;
  if (sent.arrived >= step.start) {
    step.start = sent.arrived;
    step.before = sent.cause;
  }
  if (keeps_messages) {
    messages[as_index(reader.rank)].push_back(
        {sender, reader, ready, sent.begun, sent.arrived, sent.ahead, sent.ahead_to});
  }
  return sent;
}

Steps make_steps(const Schedule& schedule, const Costs& costs, bool keeps_messages) {
  Steps steps{.schedule = schedule,
              .costs = costs,
              .stage_messages = StageMessages(costs, schedule.placement),
              .ranks = {},
              .readers = {},
              .ends_of_sent = {},
              .keeps_messages = keeps_messages,
              .messages = {}};
  for (const auto& actions : schedule.ranks) steps.ranks.emplace_back(actions.size());
  if (keeps_messages) steps.messages.resize(schedule.ranks.size());
  const ActionIndex index(schedule);
  std::vector<Transfer> transfers = transfers_of(schedule, index);
  for (Transfer& transfer : transfers) {
    const Action& receiver = steps.action_at(transfer.receiver);
    const bool posts_only = !is_compute(receiver.kind) && !costs.blocking;
    if (posts_only) transfer.receiver = compute_of(receiver, index);
  }
  if (!costs.skips.empty()) {
    const auto skips = skip_transfers(schedule, index, steps.stage_messages);
    transfers.insert(transfers.end(), skips.begin(), skips.end());
  }
  put(transfers, steps);
  return steps;
}

}  // namespace pipert

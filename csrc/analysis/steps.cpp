#include "analysis/steps.h"

#include "analysis/action_index.h"
#include "analysis/transfers.h"
#include "base/index.h"

namespace pipert {

Place compute_of(const Action& transfer, const ActionIndex& index) {
  const bool is_activation =
      transfer.kind == ActionKind::kSendForward || transfer.kind == ActionKind::kRecvForward;
  if (is_activation) return index.find(as_kind(transfer, ActionKind::kForward));
  const Place whole = index.find(as_kind(transfer, ActionKind::kBackward));
  return whole.exists() ? whole : index.find(as_kind(transfer, ActionKind::kInputGrad));
}

Transmission Steps::send(Network& network, Place sender, double ready, Place cause) {
  const Place reader = at(sender).reader;
  const Transmission sent =
      network.send({.edge = {sender.rank, reader.rank},
                    .bytes = message_bytes(action_at(sender), costs, schedule.num_slices),
                    .ready = ready,
                    .sender = sender,
                    .cause = cause});
  at(reader).start = sent.arrived;
  at(reader).before = sent.cause;
  if (keeps_messages) {
    messages[as_index(reader.rank)].push_back(
        {sender, reader, ready, sent.begun, sent.arrived, sent.ahead});
  }
  return sent;
}

Steps make_steps(const Schedule& schedule, const Costs& costs, bool keeps_messages) {
  Steps steps{.schedule = schedule,
              .costs = costs,
              .ranks = {},
              .keeps_messages = keeps_messages,
              .messages = {}};
  for (const auto& actions : schedule.ranks) steps.ranks.emplace_back(actions.size());
  if (keeps_messages) steps.messages.resize(schedule.ranks.size());
  const ActionIndex index(schedule);
  for (const Transfer& transfer : transfers_of(schedule, index)) {
    const Action& receiver = steps.action_at(transfer.receiver);
    const bool posts_only = !is_compute(receiver.kind) && !costs.blocking;
    const Place reader = posts_only ? compute_of(receiver, index) : transfer.receiver;
    steps.at(transfer.sender).reader = reader;
    steps.at(reader).start = kNotSent;
  }
  return steps;
}

}  // namespace pipert

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
  const double whole = steps.stage_messages
                           ? steps.stage_messages->bytes(kind, action.stage, destination)
                           : chain_bytes(kind, action.stage, steps.costs);
  return whole / steps.schedule.num_slices;
}

// Those of one sender in their order.
void put(const Transfer& transfer, Steps& steps) {
  const auto& [sender, reader] = transfer;
  if (steps.at(sender).reader.exists()) {
    steps.further_readers[Steps::key_of(sender)].push_back(reader);
  } else {
    steps.at(sender).reader = reader;
  }
  if (steps.at(reader).start == kNotSent) ++steps.arrivals[Steps::key_of(reader)].num_awaited;
  steps.at(reader).start = kNotSent;
}

}  // namespace

Place compute_of(const Action& transfer, const ActionIndex& index) {
  const bool is_activation =
      transfer.kind == ActionKind::kSendForward || transfer.kind == ActionKind::kRecvForward;
  if (is_activation) return index.find(as_kind(transfer, ActionKind::kForward));
  const Place whole = index.find(as_kind(transfer, ActionKind::kBackward));
  return whole.exists() ? whole : index.find(as_kind(transfer, ActionKind::kInputGrad));
}

int Steps::num_awaited(Place reader) const {
  if (at(reader).start != kNotSent) return 0;
  const auto several = arrivals.find(key_of(reader));
  return several == arrivals.end() ? 1 : several->second.num_awaited;
}

void Steps::tell(Place reader, const Transmission& sent) {
  Step& step = at(reader);
  const auto several = arrivals.empty() ? arrivals.end() : arrivals.find(key_of(reader));
  if (several == arrivals.end()) {
    step.start = sent.arrived;
    step.before = sent.cause;
    return;
  }
  Arrivals& all = several->second;
  if (sent.arrived >= all.latest) {
    all.latest = sent.arrived;
    all.before = sent.cause;
  }
  if (--all.num_awaited > 0) return;
  step.start = all.latest;
  step.before = all.before;
}

Transmission Steps::send(Network& network, Place sender, Place reader, double ready, Place cause) {
  const Transmission sent = network.send({.edge = {sender.rank, reader.rank},
                                          .bytes = bytes_of(*this, sender, reader.rank),
                                          .ready = ready,
                                          .sender = sender,
                                          .cause = cause});
  tell(reader, sent);
  if (keeps_messages) {
    messages[as_index(reader.rank)].push_back(
        {sender, reader, ready, sent.begun, sent.arrived, sent.ahead, sent.ahead_to});
  }
  return sent;
}

Steps make_steps(const Schedule& schedule, const Costs& costs, bool keeps_messages) {
  Steps steps{.schedule = schedule,
              .costs = costs,
              .stage_messages = std::nullopt,
              .ranks = {},
              .further_readers = {},
              .arrivals = {},
              .keeps_messages = keeps_messages,
              .messages = {}};
  for (const auto& actions : schedule.ranks) steps.ranks.emplace_back(actions.size());
  if (keeps_messages) steps.messages.resize(schedule.ranks.size());
  const ActionIndex index(schedule);
  for (Transfer transfer : transfers_of(schedule, index)) {
    const Action& receiver = steps.action_at(transfer.receiver);
    const bool posts_only = !is_compute(receiver.kind) && !costs.blocking;
    if (posts_only) transfer.receiver = compute_of(receiver, index);
    put(transfer, steps);
  }
  if (!costs.skips.empty()) {
    steps.stage_messages.emplace(costs, schedule.placement);
    for (const Transfer& transfer : skip_transfers(schedule, index, *steps.stage_messages))
      put(transfer, steps);
  }
  return steps;
}

}  // namespace pipert

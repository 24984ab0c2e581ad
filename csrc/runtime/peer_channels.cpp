#include "runtime/peer_channels.h"

#include <algorithm>
#include <utility>

#include "runtime/trace.h"

namespace pipert {
namespace {

constexpr int kSlots = 2;  // messages to one peer that are on their way

}  // namespace

PeerChannels::PeerChannels(std::map<Rank, Ends> ends) {
  for (auto& [rank, of] : ends) peers_[rank].ends = std::move(of);
}

void PeerChannels::begin(std::int64_t epoch, bool training, const std::map<Rank, Counts>& counts) {
  epoch_ = epoch;
  training_ = training;
  for (auto& [rank, peer] : peers_) {
    const auto found = counts.find(rank);
    const Counts count = found == counts.end() ? Counts() : found->second;
    peer.num_sent = peer.num_taken = 0;
    peer.ends.sender->begin({epoch, training, count.sent});
    peer.ends.receiver->begin({epoch, training, count.taken});
  }
}

bool PeerChannels::send(Rank to, StageIndex stage, std::vector<at::Tensor> tensors, Lane& lane) {
  Peer& peer = peers_.at(to);
  const int sequence = peer.num_sent;
  const int slot = sequence % kSlots;
  if (sequence >= kSlots) {
    const Waiting waiting(*progress_, now_ns());
    if (!peer.ends.sender->release(sequence - kSlots, slot)) return false;
  }
  Message message;
  message.key = {MessageKind::kGradient, stage, sequence};
  message.epoch = epoch_;
  message.training = training_;
  message.tensors = std::move(tensors);
  message.requires_grad.assign(message.tensors.size(), false);
  peer.ends.sender->send(sequence, slot, std::move(message), lane);
  ++peer.num_sent;
  return true;
}

std::optional<std::vector<at::Tensor>> PeerChannels::take(Rank from, StageIndex stage, Lane& lane) {
  Peer& peer = peers_.at(from);
  const int sequence = peer.num_taken++;
  const int slot = sequence % kSlots;
  const Waiting waiting(*progress_, now_ns());
  peer.ends.receiver->post(sequence, slot);
  auto message = peer.ends.receiver->take(sequence, slot, lane);
  if (!message.has_value()) return std::nullopt;
  check_arrival(*message, {MessageKind::kGradient, stage, sequence}, epoch_, training_);
  for (const at::Tensor& tensor : message->tensors) {
    if (lane.is_asynchronous() && tensor.defined()) lane.adopt(tensor);
  }
  return std::move(message->tensors);
}

bool PeerChannels::release_all() {
  const Waiting waiting(*progress_, now_ns());
  for (auto& [rank, peer] : peers_) {
    for (int sequence = std::max(0, peer.num_sent - kSlots); sequence < peer.num_sent; ++sequence) {
      if (!peer.ends.sender->release(sequence, sequence % kSlots)) return false;
    }
  }
  return true;
}

void PeerChannels::abort() noexcept {
  for (auto& [rank, peer] : peers_) {
    peer.ends.sender->abort();
    peer.ends.receiver->abort();
  }
}

bool PeerChannels::reset() noexcept {
  bool usable = true;
  for (auto& [rank, peer] : peers_) {
    usable = peer.ends.sender->reset() && usable;
    usable = peer.ends.receiver->reset() && usable;
  }
  return usable;
}

}  // namespace pipert

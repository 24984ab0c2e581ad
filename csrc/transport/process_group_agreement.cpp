#include "transport/process_group_agreement.h"

#include <ATen/ops/zeros.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "base/error.h"
#include "base/index.h"
#include "transport/process_group_works.h"

namespace pipert {
namespace {

constexpr int kTagsOfOneParity = 64;  // more than there can be rounds

class ProcessGroupAgreement final : public Agreement {
 public:
  ProcessGroupAgreement(c10::intrusive_ptr<c10d::Backend> group, int max_values)
      : group_(std::move(group)), max_values_(max_values) {
    for (int distance = 1; distance < group_->getSize(); distance *= 2) {
      for (auto& rounds : rounds_)
        rounds.push_back({distance, buffer(), buffer(), nullptr, nullptr});
    }
    post_receives(parity_);
  }

  bool agree(std::vector<double>& values) override {
    if (static_cast<int>(values.size()) > max_values_) {
      throw InternalError(
          concat("an agreement holds ", max_values_, " values, got ", values.size()));
    }
    const int parity = std::exchange(parity_, 1 - parity_);
    // For the next agreement, which a fast rank may enter as soon as it has heard from this one;
    // and not after this agreement, when a peer may be gone.
    post_receives(parity_);
    auto& rounds = rounds_[as_index(parity)];
    for (std::size_t round = 0; round < rounds.size(); ++round) {
      Round& at = rounds[round];
      write(values, at.outgoing);
      std::vector<at::Tensor> outgoing{at.outgoing};
      const int peer = (group_->getRank() + at.distance) % group_->getSize();
      awaited_rank_.store(source(at), std::memory_order_relaxed);
      at.sent = works_.start([&] { return group_->send(outgoing, peer, tag(parity, round)); });
      if (at.sent == nullptr || !works_.wait(std::exchange(at.received, nullptr))) return false;
      read(at.incoming, values);
    }
    // What was not sent would be lost if this rank closed its group now.
    return std::all_of(rounds.begin(), rounds.end(),
                       [this](Round& at) { return works_.wait(std::exchange(at.sent, nullptr)); });
  }

  int awaited_rank() const override { return awaited_rank_.load(std::memory_order_relaxed); }
  void abort() noexcept override { works_.abort(); }
  bool reset() noexcept override { return false; }

 private:
  struct Round {
    int distance = 1;
    at::Tensor outgoing;  // float64 of shape (1 + max_values,): how many values, then they
    at::Tensor incoming;  // likewise
    PendingWorks::WorkPtr sent;
    PendingWorks::WorkPtr received;
  };

  at::Tensor buffer() const {
    return at::zeros({1 + max_values_}, at::TensorOptions().dtype(at::kDouble));
  }

  int source(const Round& round) const {
    const int size = group_->getSize();
    return (group_->getRank() - round.distance % size + size) % size;
  }

  static int tag(int parity, std::size_t round) {
    return parity * kTagsOfOneParity + static_cast<int>(round);
  }

  void post_receives(int parity) {
    auto& rounds = rounds_[as_index(parity)];
    for (std::size_t round = 0; round < rounds.size(); ++round) {
      std::vector<at::Tensor> incoming{rounds[round].incoming};
      const int peer = source(rounds[round]);
      rounds[round].received =
          works_.start([&] { return group_->recv(incoming, peer, tag(parity, round)); });
    }
  }

  static void write(const std::vector<double>& values, at::Tensor& buffer) {
    auto* out = buffer.mutable_data_ptr<double>();
    *out++ = static_cast<double>(values.size());
    std::copy(values.begin(), values.end(), out);
  }

  void read(const at::Tensor& buffer, std::vector<double>& values) const {
    const auto* in = buffer.const_data_ptr<double>();
    const double count = *in++;
    if (!(count >= 0.0 && count <= max_values_))
      throw ValueError("the ranks don't end the same step");
    if (values.empty()) values.assign(in, in + static_cast<std::ptrdiff_t>(count));
  }

  c10::intrusive_ptr<c10d::Backend> group_;  // outlives the works and buffers below
  int max_values_;
  std::array<std::vector<Round>, 2> rounds_;
  int parity_ = 0;
  std::atomic<int> awaited_rank_{0};
  PendingWorks works_;
};

}  // namespace

std::unique_ptr<Agreement> make_process_group_agreement(c10::intrusive_ptr<c10d::Backend> group,
                                                        int max_values) {
  return std::make_unique<ProcessGroupAgreement>(std::move(group), max_values);
}

}  // namespace pipert

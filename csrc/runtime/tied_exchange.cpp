#include "runtime/tied_exchange.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <map>
#include <utility>

#include "autograd/main_gradients.h"
#include "base/error.h"

namespace pipert {
namespace {

// Of a part: 32 MB of float32. Counted by elements, so that all processes count alike, whatever
// they add up in.
constexpr std::int64_t kPartElements = std::int64_t{8} << 20;
constexpr std::int64_t kOne = 1;

std::int64_t num_rows(const at::Tensor& parameter) {
  return parameter.dim() == 0 ? 1 : parameter.size(0);
}

at::Tensor rows_of(const at::Tensor& whole, std::int64_t begin, std::int64_t end) {
  return whole.dim() == 0 ? whole : whole.narrow(0, begin, end - begin);
}

// Whether the sum may be written there.
bool can_hold(const at::Tensor& gradient, const at::Tensor& parameter) {
  return gradient.defined() && gradient.layout() == at::kStrided &&
         gradient.sizes() == parameter.sizes();
}

}  // namespace

void TiedExchange::begin(ExchangeKind kind, std::int64_t epoch, std::vector<TiedWeight> weights) {
  const at::NoGradGuard no_grad;
  kind_ = kind;
  weights_ = std::move(weights);
  steps_.clear();
  put_aside_.assign(weights_.size(), {});
  if (kind != ExchangeKind::kEvaluation) {
    for (std::size_t i = 0; i < weights_.size(); ++i) plan(i);
  }
  at_.store(0, std::memory_order_relaxed);
  std::map<Rank, PeerChannels::Counts> counts;
  for (const Step& step : steps_) {
    for (const Rank peer : weights_[step.weight].peers) {
      (step.gives ? counts[peer].sent : counts[peer].taken) += 1;
    }
  }
  channels().begin(epoch, kind == ExchangeKind::kTraining, counts);
  if (kind != ExchangeKind::kTraining) return;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const TiedWeight& weight = weights_[i];
    if (weight.is_owner) continue;
    if (weight.main.defined()) {
      weight.main.zero_();
    } else {
      put_aside_[i] = std::exchange(weight.parameter.mutable_grad(), {});
    }
  }
}

void TiedExchange::plan(std::size_t index) {
  const TiedWeight& weight = weights_[index];
  const std::int64_t count = num_rows(weight.parameter);
  const std::int64_t row = std::max(weight.parameter.numel() / std::max(count, kOne), kOne);
  const std::int64_t rows = std::max(kPartElements / row, kOne);
  std::vector<Step> parts;
  for (std::int64_t at = 0; at < count; at += rows) {
    parts.push_back({.weight = index, .begin = at, .end = std::min(at + rows, count)});
  }
  const auto add = [&](Step part, bool gives) {
    part.gives = gives;
    steps_.push_back(part);
  };
  const bool adds_up = kind_ == ExchangeKind::kTraining;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!adds_up || weight.is_owner) {
      if (adds_up) add(parts[i], false);
      add(parts[i], weight.is_owner);
      continue;
    }
    add(parts[i], true);  // ahead of the sum of the one before
    if (i > 0) add(parts[i - 1], false);
  }
  if (adds_up && !weight.is_owner && !parts.empty()) add(parts.back(), false);
}

bool TiedExchange::run(Lane& lane) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    come_to(weights_[steps_[i].weight].peers.front());
    at_.store(i, std::memory_order_relaxed);
    if (!(steps_[i].gives ? give(steps_[i], lane) : take(steps_[i], lane))) return false;
  }
  return channels().release_all();
}

bool TiedExchange::give(const Step& step, Lane& lane) {
  const TiedWeight& weight = weights_[step.weight];
  at::Tensor part = content(step.weight);
  if (part.defined()) part = rows_of(part, step.begin, step.end);
  for (const Rank peer : weight.peers) {
    come_to(peer);
    if (!channels().send(peer, weight.stage, {part}, lane)) return false;
  }
  return true;
}

bool TiedExchange::take(const Step& step, Lane& lane) {
  const TiedWeight& weight = weights_[step.weight];
  for (const Rank peer : weight.peers) {
    come_to(peer);
    const auto tensors = channels().take(peer, weight.stage, lane);
    if (!tensors.has_value()) return false;
    const at::Tensor& theirs = tensors->at(0);
    const at::Tensor rows = rows_of(weight.parameter, step.begin, step.end);
    if (theirs.defined() && theirs.sizes() != rows.sizes()) {
      throw ValueError(concat("the weight ", weight.name, " is not the same everywhere: expected ",
                              "rows of shape ", rows.sizes(), ", got ", theirs.sizes()));
    }
    apply(step, theirs);
  }
  return true;
}

at::Tensor TiedExchange::content(std::size_t index) const {
  const TiedWeight& weight = weights_[index];
  if (kind_ == ExchangeKind::kWeights) return weight.parameter.detach();
  if (weight.main.defined()) {
    add_to_main(weight.parameter, weight.main);  // what came past its hooks
    return weight.main;
  }
  const at::Tensor& gradient = weight.parameter.grad();
  if (gradient.defined() && gradient.layout() != at::kStrided) {
    throw ValueError(concat("the gradient of ", weight.name,
                            " is sparse, which stages in several processes that share the weight "
                            "can't add up: expected dense gradients"));
  }
  return gradient;
}

void TiedExchange::apply(const Step& step, const at::Tensor& theirs) {
  if (!theirs.defined()) return;
  const TiedWeight& weight = weights_[step.weight];
  at::Tensor& before = put_aside_[step.weight];
  const bool fills_before = can_hold(before, weight.parameter);  // whose memory goes on
  at::Tensor ours = fills_before ? before : content(step.weight);
  if (!ours.defined()) ours = make_gradient(step.weight);
  const at::Tensor part = rows_of(ours, step.begin, step.end);
  if (kind_ == ExchangeKind::kTraining && weight.is_owner) {
    part.add_(theirs);
  } else {
    part.copy_(theirs);
  }
  if (step.end < num_rows(weight.parameter)) return;
  if (fills_before) weight.parameter.mutable_grad() = before;
  before.reset();
}

at::Tensor TiedExchange::make_gradient(std::size_t index) {
  const TiedWeight& weight = weights_[index];
  const at::Tensor& parameter = weight.parameter;
  at::Tensor gradient = weight.is_owner ? at::zeros_like(parameter) : at::empty_like(parameter);
  parameter.mutable_grad() = gradient;
  return gradient;
}

void TiedExchange::finish() {
  for (std::size_t i = 0; i < put_aside_.size(); ++i) {
    if (put_aside_[i].defined()) weights_[i].parameter.mutable_grad() = std::move(put_aside_[i]);
  }
  put_aside_.clear();
  weights_.clear();
}

std::string TiedExchange::awaited() const {
  const std::size_t at = at_.load(std::memory_order_relaxed);
  if (at >= steps_.size()) return "nobody";
  return concat("rank ", peer_.load(std::memory_order_relaxed), ", which shares the weight ",
                weights_[steps_[at].weight].name);
}

std::string TiedExchange::doing() const {
  const std::size_t at = at_.load(std::memory_order_relaxed);
  if (at >= steps_.size()) return "ended the exchange of shared weights";
  const char* what = kind_ == ExchangeKind::kWeights ? "values" : "gradient";
  return concat("exchanged the ", what, " of ", weights_[steps_[at].weight].name, " with rank ",
                peer_.load(std::memory_order_relaxed));
}

}  // namespace pipert

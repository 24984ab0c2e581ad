#include "runtime/copy_exchange.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/index.h"

namespace pipert {
namespace {

// A message holds tensors of so many bytes, or one larger tensor: sums of one part go along with
// the transfer of the next.
constexpr std::size_t kPartBytes = std::size_t{32} << 20;
// Buffers up to this size are sent in any case: batch norm's kernels write to its statistics
// without a change of their version.
constexpr std::size_t kSmallBytes = std::size_t{1} << 20;

std::size_t num_bytes(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided ? tensor.nbytes() : kPartBytes;
}

void require_same_number(std::size_t expected, std::size_t got, const SharedStage& stage) {
  if (expected == got) return;
  throw ValueError(concat("the two copies of stage ", stage.stage, " differ: ", expected,
                          " tensors here, ", got, " on rank ", stage.peer));
}

void copy_into(const at::Tensor& ours, const at::Tensor& theirs, const SharedStage& stage) {
  if (ours.sizes() != theirs.sizes()) {
    throw ValueError(concat("the two copies of stage ", stage.stage, " differ: a tensor of shape ",
                            ours.sizes(), " here, of ", theirs.sizes(), " on rank ", stage.peer));
  }
  ours.copy_(theirs);
}

}  // namespace

void CopyExchange::begin(ExchangeKind kind, std::int64_t epoch, std::vector<SharedStage> stages) {
  stages_ = std::move(stages);
  std::sort(stages_.begin(), stages_.end(),
            [](const SharedStage& a, const SharedStage& b) { return a.stage < b.stage; });
  received_ = {};
  steps_.clear();
  put_aside_.assign(stages_.size(), {});
  for (std::size_t i = 0; i < stages_.size(); ++i) plan(kind, i);
  at_.store(0, std::memory_order_relaxed);
  std::map<Rank, PeerChannels::Counts> counts;
  for (const Step& step : steps_) {
    PeerChannels::Counts& count = counts[stages_[step.stage].peer];
    count.sent += step.sends ? 1 : 0;
    count.taken += step.takes ? 1 : 0;
  }
  channels().begin(epoch, kind == ExchangeKind::kTraining, counts);
}

void CopyExchange::plan(ExchangeKind kind, std::size_t index) {
  const SharedStage& stage = stages_[index];
  const bool is_first = stage.is_first_copy;
  if (kind == ExchangeKind::kWeights) {
    std::vector<at::Tensor> tensors = stage.parameters;
    tensors.insert(tensors.end(), stage.buffers.begin(), stage.buffers.end());
    plan_parts({Content::kWeights, index, 0, 0, is_first, !is_first}, tensors);
    return;
  }
  if (stage.losses_of != nullptr) steps_.push_back({Content::kLosses, index, 0, 0, true, true});
  if (!stage.buffers.empty()) {
    steps_.push_back({Content::kDrift, index, 0, 0, !is_first, is_first});
    steps_.push_back({Content::kBuffers, index, 0, 0, is_first, !is_first});
  }
  if (kind == ExchangeKind::kEvaluation) return;
  plan_parts({Content::kGradients, index, 0, 0, true, true}, stage.parameters);
  if (is_first) return;
  for (const at::Tensor& parameter : stage.parameters) {
    put_aside_[index].push_back(std::exchange(parameter.mutable_grad(), {}));
  }
}

void CopyExchange::plan_parts(Step step, const std::vector<at::Tensor>& tensors) {
  while (step.end < tensors.size()) {
    step.begin = step.end;
    std::size_t bytes = 0;
    do {
      bytes += num_bytes(tensors[step.end++]);
    } while (step.end < tensors.size() && bytes + num_bytes(tensors[step.end]) <= kPartBytes);
    steps_.push_back(step);
  }
}

bool CopyExchange::run(Lane& lane) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    at_.store(i, std::memory_order_relaxed);
    const Step& step = steps_[i];
    const SharedStage& stage = stages_[step.stage];
    if (step.sends && !channels().send(stage.peer, stage.stage, content(step), lane)) return false;
    if (step.takes && !take(step, lane)) return false;
  }
  if (!channels().release_all()) return false;
  for (const SharedStage& stage : stages_) see_buffers(stage);
  return true;
}

bool CopyExchange::take(const Step& step, Lane& lane) {
  const SharedStage& stage = stages_[step.stage];
  const auto tensors = channels().take(stage.peer, stage.stage, lane);
  if (!tensors.has_value()) return false;
  apply(step, *tensors);
  return true;
}

std::vector<at::Tensor> CopyExchange::content(const Step& step) const {
  const SharedStage& stage = stages_[step.stage];
  std::vector<at::Tensor> tensors;
  switch (step.content) {
    case Content::kLosses: {
      tensors = stage.losses_of->losses();
      const auto& weights = stage.losses_of->loss_weights();
      at::Tensor shares = at::empty({static_cast<std::int64_t>(weights.size())},
                                    at::TensorOptions().dtype(at::kDouble));
      std::copy(weights.begin(), weights.end(), shares.mutable_data_ptr<double>());
      tensors.push_back(shares);
      break;
    }
    case Content::kDrift: {
      at::Tensor drifted = at::zeros({static_cast<std::int64_t>(stage.buffers.size())},
                                     at::TensorOptions().dtype(at::kBool));
      bool* flags = drifted.mutable_data_ptr<bool>();
      for (std::size_t i = 0; i < stage.buffers.size(); ++i) flags[i] = has_changed(stage, i);
      tensors.push_back(drifted);
      break;
    }
    case Content::kBuffers:
      for (std::size_t i = 0; i < stage.buffers.size(); ++i) {
        const bool is_needed = drifted_[i] || has_changed(stage, i);
        tensors.push_back(is_needed ? stage.buffers[i].detach() : at::Tensor());
      }
      break;
    case Content::kGradients:
      for (std::size_t i = step.begin; i < step.end; ++i) {
        const at::Tensor& gradient = stage.parameters[i].grad();
        if (gradient.defined() && gradient.layout() != at::kStrided) {
          throw ValueError(concat("a gradient of stage ", stage.stage,
                                  " is sparse, which copies of the model in two processes can't "
                                  "add up: expected dense gradients"));
        }
        tensors.push_back(gradient);
      }
      break;
    case Content::kWeights:
      for (std::size_t i = step.begin; i < step.end; ++i) {
        const std::size_t count = stage.parameters.size();
        tensors.push_back((i < count ? stage.parameters[i] : stage.buffers[i - count]).detach());
      }
      break;
  }
  return tensors;
}

void CopyExchange::apply(const Step& step, const std::vector<at::Tensor>& tensors) {
  const SharedStage& stage = stages_[step.stage];
  switch (step.content) {
    case Content::kLosses: {
      Losses theirs{.values = tensors, .weights = {}};
      const at::Tensor shares = theirs.values.back().cpu();
      theirs.values.pop_back();
      const auto* share = shares.const_data_ptr<double>();
      theirs.weights.assign(share, share + shares.numel());
      received_.merge(theirs);
      break;
    }
    case Content::kDrift: {
      require_same_number(stage.buffers.size(), static_cast<std::size_t>(tensors.at(0).numel()),
                          stage);
      const at::Tensor drifted = tensors[0].cpu();
      const bool* flags = drifted.const_data_ptr<bool>();
      drifted_.assign(flags, flags + drifted.numel());
      break;
    }
    case Content::kBuffers:
      require_same_number(stage.buffers.size(), tensors.size(), stage);
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].defined()) copy_into(stage.buffers[i], tensors[i], stage);
      }
      break;
    case Content::kGradients:
      add_gradients(step, tensors);
      break;
    case Content::kWeights:
      require_same_number(step.end - step.begin, tensors.size(), stage);
      for (std::size_t i = step.begin; i < step.end; ++i) {
        const std::size_t count = stage.parameters.size();
        const at::Tensor& ours = i < count ? stage.parameters[i] : stage.buffers[i - count];
        copy_into(ours, tensors[i - step.begin], stage);
      }
      break;
  }
}

void CopyExchange::add_gradients(const Step& step, const std::vector<at::Tensor>& theirs) {
  const SharedStage& stage = stages_[step.stage];
  require_same_number(step.end - step.begin, theirs.size(), stage);
  for (std::size_t i = step.begin; i < step.end; ++i) {
    at::Tensor& gradient = stage.parameters[i].mutable_grad();
    const at::Tensor& other = theirs[i - step.begin];
    if (stage.is_first_copy) {
      if (!other.defined()) continue;
      if (gradient.defined()) {
        gradient.add_(other);
      } else {
        gradient = other.clone();  // the message's memory is that of many
      }
      continue;
    }
    at::Tensor before = std::exchange(put_aside_[step.stage][i], {});
    if (!other.defined()) continue;
    at::Tensor sum = before.defined() ? before.copy_(other) : other.clone();
    if (gradient.defined()) sum.add_(gradient);
    gradient = std::move(sum);
  }
}

void CopyExchange::see_buffers(const SharedStage& stage) {
  auto& seen = seen_[stage.stage];
  seen.clear();
  for (const at::Tensor& buffer : stage.buffers) {
    seen.push_back({buffer, buffer.is_inference() ? -1 : buffer._version()});
  }
}

bool CopyExchange::has_changed(const SharedStage& stage, std::size_t buffer) const {
  const auto found = seen_.find(stage.stage);
  if (found == seen_.end() || found->second.size() != stage.buffers.size()) return true;
  const at::Tensor& now = stage.buffers[buffer];
  const Seen& seen = found->second[buffer];
  return num_bytes(now) <= kSmallBytes || now.is_inference() || !now.is_same(seen.buffer) ||
         now._version() != seen.version;
}

void CopyExchange::finish() {
  for (std::size_t i = 0; i < put_aside_.size(); ++i) {
    for (std::size_t j = 0; j < put_aside_[i].size(); ++j) {
      at::Tensor& before = put_aside_[i][j];
      if (before.defined()) stages_[i].parameters[j].mutable_grad() = std::move(before);
    }
  }
  put_aside_.clear();
  stages_.clear();
}

std::string CopyExchange::awaited() const {
  const std::size_t at = at_.load(std::memory_order_relaxed);
  if (at >= steps_.size()) return "nobody";
  const SharedStage& stage = stages_[steps_[at].stage];
  return concat("rank ", stage.peer, ", which has the other copy of stage ", stage.stage);
}

std::string CopyExchange::doing() const {
  const std::size_t at = at_.load(std::memory_order_relaxed);
  if (at >= steps_.size()) return "ended the exchange of its copies";
  const SharedStage& stage = stages_[steps_[at].stage];
  return concat("exchanged the ", name_of(steps_[at].content), " of stage ", stage.stage,
                " with rank ", stage.peer);
}

std::string_view CopyExchange::name_of(Content content) {
  switch (content) {
    case Content::kLosses:
      return "losses";
    case Content::kDrift:
      return "changes of buffers";
    case Content::kBuffers:
      return "buffers";
    case Content::kGradients:
      return "gradients";
    case Content::kWeights:
      return "weights";
  }
  throw InternalError("unknown content of an exchange");
}

}  // namespace pipert

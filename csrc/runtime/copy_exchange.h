// CopyExchange: what the two processes that hold the two copies of a stage tell each other after
// each pass, so that they go on as one model (Note [Copies of the model] in ir/placement.h).
//
// Note [Two copies, one model]
//
// After a pass that trains, each of the two gives the other its gradients, and both end with
// (gradient of the first copy) + (gradient of the second): the same bits, because a sum of two
// doesn't depend on their order. What was in .grad before the pass counts in the first copy; the
// second accumulates from nothing, and what it had is put aside until then. Their optimizers then
// do the same.
//
// Buffers (batch norm's statistics) are those of the first copy: the second takes over what changed
// in either. Losses go both ways, so that both last stages know those of all microbatches.
//
// All ranks go through the stages in ascending order, counted in one copy, and what is sent doesn't
// wait: so the lowest stage that any rank is at has both its ranks, and none waits for ever.
//
// begin() and received() are the caller's, while no rank runs.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/exchange.h"
#include "runtime/losses.h"
#include "stage/stage.h"

namespace pipert {

// A stage of this process whose other copy is in another one.
struct SharedStage {
  StageIndex stage = 0;  // counted in its copy
  Rank peer = 0;         // where the other copy is
  bool is_first_copy = true;
  std::vector<at::Tensor> parameters;  // leaves of autograd; in the same order in both copies
  std::vector<at::Tensor> buffers;     // likewise
  const Stage* losses_of = nullptr;    // the stage itself if its losses are wanted, else null
};

class CopyExchange final : public Exchange {
 public:
  using Exchange::Exchange;

  // Before the pass: puts the gradients of second copies aside. `stages` stay as they are until
  // finish().
  void begin(ExchangeKind kind, std::int64_t epoch, std::vector<SharedStage> stages);
  bool run(Lane& lane) override;
  void finish() override;
  std::string awaited() const override;
  std::string doing() const override;

  // The losses that other processes have told, of the last pass.
  const Losses& received() const { return received_; }

 private:
  enum class Content : std::uint8_t { kLosses, kDrift, kBuffers, kGradients, kWeights };
  // One message each way, or one way.
  struct Step {
    Content content = Content::kLosses;
    std::size_t stage = 0;  // in stages_
    std::size_t begin = 0;  // of the tensors, where they go in parts
    std::size_t end = 0;
    bool sends = true;
    bool takes = true;
  };
  // A buffer as it was when both copies had the same in it.
  struct Seen {
    at::Tensor buffer;
    std::int64_t version = 0;
  };

  static std::string_view name_of(Content content);
  void plan(ExchangeKind kind, std::size_t stage);
  void plan_parts(Step step, const std::vector<at::Tensor>& tensors);
  bool take(const Step& step, Lane& lane);
  std::vector<at::Tensor> content(const Step& step) const;
  void apply(const Step& step, const std::vector<at::Tensor>& tensors);
  void add_gradients(const Step& step, const std::vector<at::Tensor>& theirs);
  void see_buffers(const SharedStage& stage);
  bool has_changed(const SharedStage& stage, std::size_t buffer) const;

  std::vector<SharedStage> stages_;
  std::vector<Step> steps_;
  std::vector<std::vector<at::Tensor>> put_aside_;  // by stage: gradients before the pass
  std::map<StageIndex, std::vector<Seen>> seen_;    // by stage: its buffers
  std::vector<bool> drifted_;  // of the stage at hand: buffers that changed in the second copy
  Losses received_;
  std::atomic<std::size_t> at_{0};  // the step at hand
};

}  // namespace pipert

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
// Owned by the runtime. begin(), finish() and received() are the caller's, while no rank runs;
// run() is the rank's thread's; abort() and the rest any thread's.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/losses.h"
#include "runtime/progress.h"
#include "stage/stage.h"
#include "transport/channel.h"

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

enum class ExchangeKind : std::uint8_t {
  kWeights,     // the second copies take over parameters and buffers
  kTraining,    // after a pass that trains
  kEvaluation,  // after one that doesn't
};

class CopyExchange {
 public:
  // The channels to one other process.
  struct Peer {
    std::unique_ptr<Sender> sender;
    std::unique_ptr<Receiver> receiver;
    int num_sent = 0;
    int num_taken = 0;
  };

  explicit CopyExchange(std::map<Rank, Peer> peers);

  // Before the pass: puts the gradients of second copies aside. `stages` stay as they are until
  // finish().
  void begin(ExchangeKind kind, std::int64_t epoch, std::vector<SharedStage> stages);
  // After the rank's Program, on its compute lane. False if it was aborted. Throws ValueError where
  // the two copies don't fit each other.
  bool run(Lane& lane);
  // After the pass. Gradients that were put aside and not used come back.
  void finish();

  // The losses that other processes have told, of the last pass.
  const Losses& received() const { return received_; }
  const Progress& progress() const { return progress_; }
  // "rank 3, which has the other copy of stage 1": what it waits for when it waits.
  std::string awaited() const;
  // "exchanged the gradients of stage 1 with rank 3": the step at hand.
  std::string doing() const;

  void abort() noexcept;
  bool reset() noexcept;

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
  bool send(const Step& step, Lane& lane);
  bool take(const Step& step, Lane& lane);
  bool release_all();
  std::vector<at::Tensor> content(const Step& step) const;
  void apply(const Step& step, const std::vector<at::Tensor>& tensors);
  void add_gradients(const Step& step, const std::vector<at::Tensor>& theirs);
  void see_buffers(const SharedStage& stage);
  bool has_changed(const SharedStage& stage, std::size_t buffer) const;

  std::map<Rank, Peer> peers_;
  std::vector<SharedStage> stages_;
  std::vector<Step> steps_;
  std::vector<std::vector<at::Tensor>> put_aside_;  // by stage: gradients before the pass
  std::map<StageIndex, std::vector<Seen>> seen_;    // by stage: its buffers
  std::vector<bool> drifted_;  // of the stage at hand: buffers that changed in the second copy
  Losses received_;
  std::int64_t epoch_ = 0;
  bool training_ = true;
  Progress progress_;
  std::atomic<std::size_t> at_{0};  // the step at hand
};

}  // namespace pipert

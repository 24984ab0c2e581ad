// ModuleStage: a stage whose forward is somebody's code (a StageBody) and whose backward is torch's autograd.
#pragma once

#include <memory>
#include <vector>

#include "autograd/gradient_sink.h"
#include "stage/stage.h"

namespace pipert {

struct BodyInput {
  std::vector<at::Tensor> tensors;
  std::shared_ptr<const Structure> structure;  // as in Message
};

struct BodyResult {
  std::vector<at::Tensor> tensors;             // empty on the last stage
  std::shared_ptr<const Structure> structure;  // as in Message
  at::Tensor loss;                             // the last stage's, if it has a loss function
};

// The code of one stage. It decides alone whether it needs the GIL.
class StageBody {
 public:
  virtual ~StageBody() = default;
  // On the first stage `input` is empty: the body has the batch's arguments itself.
  virtual BodyResult forward(const RunContext& context, BodyInput input) = 0;
};

struct StagePosition {
  StageIndex stage = 0;
  int num_stages = 1;
  bool is_first() const { return stage == 0; }
  bool is_last() const { return stage + 1 == num_stages; }
};

class ModuleStage final : public Stage {
 public:
  ModuleStage(StagePosition position, int num_microbatches, std::unique_ptr<StageBody> body);

  void begin(std::vector<double> weights) override;
  Message forward(const RunContext& context, Message input) override;
  Message backward(const RunContext& context, Message gradients) override;
  void reset() noexcept override;
  int num_in_flight() const override { return num_in_flight_; }

  const std::vector<at::Tensor>& losses() const override { return losses_; }
  const std::vector<double>& loss_weights() const override { return loss_weights_; }

 private:
  // What stays between a microbatch's forward and its backward. Graph edges only: the outputs themselves are freed
  // as soon as they have been sent.
  struct InFlight {
    bool active = false;
    std::vector<torch::autograd::Edge> roots;  // by output tensor; invalid where it needs no gradient
    std::vector<at::Tensor> seeds;             // the last stage's: the loss's weight, as a tensor
    AttachedSink sink;                         // of the inputs
    std::vector<bool> needs_gradient;          // by input tensor
  };

  void finish_loss(const RunContext& context, double weight, const at::Tensor& loss, InFlight& state);
  double weight_of(const RunContext& context, const Message& input) const;

  StagePosition position_;
  std::unique_ptr<StageBody> body_;
  std::vector<InFlight> in_flight_;  // by microbatch
  int num_in_flight_ = 0;
  std::vector<double> weights_;
  std::vector<at::Tensor> losses_;
  std::vector<double> loss_weights_;
};

}  // namespace pipert

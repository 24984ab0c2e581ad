// Stage: what the Executor runs: the forward and backward of one piece of the model, one microbatch
// at a time.
//
// Owned by the runtime; used by the thread of its rank alone. It keeps what a microbatch needs
// between its forward and its backward. Work lands on the lane that is current on the calling
// thread.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "device/message.h"

namespace pipert {

// One pass of the batch through the pipeline.
struct Pass {
  std::int64_t epoch = 0;  // counts the passes of this pipeline, training or not
  bool training = true;    // false: forward only, nothing is kept for a backward
  std::int64_t step = 0;   // training passes before this one, as the user counts them
  bool is_keyed = false;   // random numbers depend on `step`: all ranks must be at the same
};

// Where one microbatch stands on one stage. Follows from the rank's Program.
struct StageTurn {
  StageIndex stage = 0;
  std::int64_t first_layer = 0;  // the stage's first, through the whole model
  bool is_first = false;         // whether its forward is the first that the stage runs in a pass
  bool is_last = false;          // likewise the last
  // Whether the stage's backwards (both halves of them) begin with the microbatch with which its
  // forwards begin.
  bool first_comes_first = true;
};

struct RunContext {
  Microbatch microbatch = 0;
  int num_microbatches = 0;
  Pass pass;
  StageTurn turn;
  c10::Device device{c10::kCPU};  // the rank's
  bool is_recomputing = false;    // the forward runs a second time, for its graph
  // Of a forward: whether offload(), or recompute(), follows.
  bool offloads = false;
  bool recomputes = false;
};

// What each microbatch's loss counts in the loss of the batch.
struct LossWeights {
  std::vector<double> by_microbatch;  // empty: not known here
  // Whether the user says so, and not the microbatches' rows. Such a weight may be anything from 0;
  // a microbatch that counts 0 gives no gradients.
  bool are_chosen = false;
};

class Stage {
 public:
  virtual ~Stage() = default;

  // Before a pass. `weights`: given on the first stage and the last one, if they are known there.
  // `rows`: of the whole batch, as in Message::batch_size; 0 where this stage is given none of it.
  // On other stages than the first both are checked against what comes with the messages, but for
  // weights that are chosen.
  virtual void begin(LossWeights weights, std::int64_t rows) = 0;

  // REQUIRES that the microbatch is not in flight on this stage. `input`: what the stage before
  // returned; without tensors on the first stage. Returns what the next stage gets; without tensors
  // on the last stage. Throws whatever the user's code throws.
  virtual Message forward(const RunContext& context, Message input) = 0;

  // REQUIRES that the microbatch's forward ran. `gradients`: one for each tensor that forward
  // returned, undefined where no later stage computed one; ignored on the last stage, which starts
  // from the loss. Behind them, or nothing: one for each tensor of forward's input, the sum of what
  // later readers of the same tensor computed, or undefined; nobody else has it or its memory.
  // Returns one gradient for each tensor of forward's input, with that sum in it. The microbatch is
  // no longer in flight.
  virtual Message backward(const RunContext& context, Message gradients) = 0;

  // The forward again, for the graph that it threw away: where a microbatch's forward keeps its
  // input alone, this (or else its backward) computes the rest once more. REQUIRES that the
  // microbatch's forward ran, and no backward. Does nothing if the graph is there.
  virtual void recompute(const RunContext& context) = 0;

  // Backward in two halves. backward_input is as backward, but leaves out what only weights need;
  // backward_weight, which comes after it, makes up for that. In between the microbatch is still in
  // flight.
  virtual Message backward_input(const RunContext& context, Message gradients) = 0;
  virtual void backward_weight(const RunContext& context) = 0;

  // Moves what the microbatch's backward needs, and nobody else holds, to the host, and back.
  // REQUIRES that its forward was told so (RunContext::offloads), and that the microbatch is in
  // flight. The work lands on `lane`; `compute` is the one that uses the activations.
  virtual void offload(const RunContext& context, Lane& lane) = 0;
  virtual void reload(const RunContext& context, Lane& lane, Lane& compute) = 0;

  // Forgets all microbatches in flight, after a pass that failed.
  virtual void reset() noexcept = 0;

  // The losses of the last pass, detached, by microbatch, and the weight of each in the mean. Empty
  // unless this is the last stage and it has a loss function.
  virtual const std::vector<at::Tensor>& losses() const = 0;
  virtual const std::vector<double>& loss_weights() const = 0;

  // Microbatches whose forward ran and whose backward (or weight half) did not.
  virtual int num_in_flight() const = 0;
  // Those of them whose activations are on the device.
  virtual int num_activations() const = 0;
};

}  // namespace pipert

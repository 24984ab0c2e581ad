// StageBody: the code of one stage, as ModuleStage runs it: somebody's module, or an exported
// graph.
//
// Owned by its stage; run by the rank's thread alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "autograd/node_ptr.h"
#include "stage/stage.h"

namespace pipert {

struct StagePosition {
  StageIndex stage = 0;
  bool is_first = true;  // of its copy of the model
  bool is_last = true;
};

enum class BodyRun : std::uint8_t {
  kOnly,   // the microbatch's one and only: what it was given may be dropped
  kFirst,  // the body keeps what it needs to run again just so
  kAgain,  // after kFirst: the same results, and no other effect
};

struct BodyInput {
  std::vector<at::Tensor> tensors;
  std::shared_ptr<const Structure> structure;  // as in Message
  std::vector<NodePtr> retired;                // graphs of earlier microbatches, to be freed first
  BodyRun run = BodyRun::kOnly;
};

// Note [What Python has seen dies where the GIL is held]
//
// A tensor that Python has seen takes the GIL when it dies. If that is somewhere in C++, the rank
// waits for another rank's forward, and breaks into it: each such wait costs both of them a change
// of threads. So a body holds the GIL until the stage has taken its result apart (BodyHold).
//
// A backward that frees its graph as it goes would wait once for each saved tensor. So when ranks
// share a GIL, the graph of a small stage is kept until the rank's next forward, which holds the
// GIL anyhow, or the end of the pass. Large stages, where the wait is small beside the work and the
// memory is not, free theirs at once; so do graphs with Python nodes, some of which refuse to be
// kept.
//
// While it lives, the body's tensors may die.
class BodyHold {
 public:
  virtual ~BodyHold() = default;
};

struct BodyResult {
  std::unique_ptr<BodyHold> hold;              // the first member, so that it goes last
  std::vector<at::Tensor> tensors;             // empty on the last stage
  std::shared_ptr<const Structure> structure;  // as in Message
  at::Tensor loss;                             // the last stage's, if it has a loss function
  // kFirst: false if the code changed in place what it would need to run again.
  bool can_run_again = true;
};

// The code of one stage. It decides alone whether it needs the GIL.
class StageBody {
 public:
  virtual ~StageBody() = default;
  // On the first stage `input` is empty: the body has the batch's arguments itself.
  virtual BodyResult forward(const RunContext& context, BodyInput input) = 0;
  // Whether it has parameters that require a gradient. REQUIRES that the hold of the last forward
  // lives.
  virtual bool trains() const { return false; }
  // After a backward that threw, on its thread: takes back what the engine left set there. The
  // exception has it too.
  virtual void backward_failed() noexcept {}
};

}  // namespace pipert

// ActionRecording: the graphs of one pass of a rank, one for each action of each microbatch.
//
// Note [Graphs of single actions]
//
// Graphs are recorded in the order of the rank's Program, and launched in that order: so all share
// one pool of memory, and what dies on the way from one action to a later one is used again, as in
// a pass that runs as it is. Microbatches that are in flight together lie apart, and the others on
// top of each other: the pool has the slots. It follows that the recording may own nothing of what
// it names (its inputs and outputs are aliases of memory that others have by the time that the pass
// ends), but what outlives the pass: losses and gradients.
//
// An action's input is copied into the graph's own tensors before it is launched, and its results
// are copied out behind it, on the same lane: a message is as any other.
//
// Made and launched by the rank's thread; dies on the caller's, between passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "device/device_graph.h"
#include "stage/message_form.h"
#include "stage/recorded_gradients.h"

namespace pipert {

enum class StageAction : std::uint8_t { kForward, kBackward, kBackwardInput, kBackwardWeight };

struct RecordedAction {
  std::unique_ptr<DeviceGraph> graph;
  MessageForm form;                // of what it was given
  std::vector<at::Tensor> inputs;  // aliases
  Message output;                  // its tensors are aliases
  at::Tensor loss;                 // a last stage's forward's; undefined where there is none
  double loss_weight = 0.0;
  RecordedGradients gradients;
};

class ActionRecording {
 public:
  using Name = std::tuple<StageAction, StageIndex, Microbatch>;

  RecordedAction& keep(const Name& name, RecordedAction action);
  // Null where there is none.
  RecordedAction* find(const Name& name);
  // At the end of the pass. `gradients`: by leaf, those that there are: no other is owned.
  void close(const std::vector<at::Tensor>& gradients);

  // What goes with it: the last stage's outputs. Owned for as long.
  std::shared_ptr<void> outputs;

 private:
  std::map<Name, RecordedAction> actions_;
};

// Tensors on the same memory that don't own it.
std::vector<at::Tensor> aliases_of(const std::vector<at::Tensor>& tensors);

}  // namespace pipert

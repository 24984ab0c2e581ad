// Replay: how a recorded pass is done again: the batch copied to where the recording reads it, one
// launch, gradients put where the recording writes them, and results copied out, in one call.
//
// Used with the GIL held, by the thread that runs passes.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <vector>

#include "bindings/pass_conditions.h"
#include "bindings/tensor_slot.h"

struct CUstream_st;

namespace pipert {

// Where recordings that share their memory were replayed last.
struct LastStream {
  CUstream_st* stream = nullptr;
  bool is_set = false;
};

class Replay {
 public:
  struct Recorded {
    std::shared_ptr<TensorSlot> inputs;   // the batch
    std::shared_ptr<TensorSlot> results;  // losses, outputs
    std::vector<at::Tensor> gradients;    // after the pass, by leaf; undefined: none
  };
  // `prepare()`: for a replay on another stream than the last one. `launch()`: does it.
  // `last`: shared by all recordings that share their memory.
  Replay(std::shared_ptr<PassConditions> conditions, Recorded recorded, pybind11::object prepare,
         pybind11::object launch, std::shared_ptr<LastStream> last);

  // Does the pass for a batch of these tensors; its results, the caller's own. Nothing, and nothing
  // is done, if one of them is no plain tensor, or of another kind than the recording's.
  std::optional<std::vector<at::Tensor>> run(const pybind11::tuple& batch);

 private:
  void prepare();

  std::shared_ptr<PassConditions> conditions_;  // shared by the recordings made under them
  Recorded recorded_;
  pybind11::object prepare_;
  pybind11::object launch_;
  std::shared_ptr<LastStream> last_;
};

}  // namespace pipert

// BatchBody: a stage's body that takes its share of each batch from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/loss_result.h"
#include "bindings/python_tree.h"
#include "stage/stage_body.h"

namespace pipert {

// What one stage gets of the batch for one microbatch: as a Python object, or flat where the stage
// may run without Python.
struct BatchPiece {
  pybind11::object object;
  std::optional<FlatValue> flat;

  // The Python object, which is made if need be; null if there is nothing. Taken out, so that it is
  // freed as soon as it has been used, unless it `is_kept`. REQUIRES the GIL.
  pybind11::object get(bool is_kept);
};

// The batch of one pass, already cut, as one stage sees it. Each list has one entry for each
// microbatch or is empty. Written by the caller before the pass.
struct BodyBatch {
  std::vector<BatchPiece> args;     // tuples of positional arguments; the first stage's alone
  std::vector<BatchPiece> kwargs;   // dicts of the keyword arguments that this stage takes
  std::vector<BatchPiece> targets;  // the last stage's alone; empty: the loss function takes the
                                    // output alone
  BatchPiece loss_kwargs;           // a dict or None
  bool compute_loss = false;
  bool keep_outputs = false;
  bool keep_pieces = false;  // a microbatch's forward may run more than once
};

class BatchBody : public StageBody {
 public:
  // Both REQUIRE the GIL, and that no pass is running.
  virtual void set_batch(BodyBatch batch) = 0;
  // The last stage's outputs of the last pass, by microbatch, detached.
  virtual std::vector<pybind11::object> take_outputs() = 0;
  // What its loss function gave beside the losses, likewise.
  virtual std::vector<Metrics> take_metrics() = 0;

  // Whether it wants its pieces flat.
  virtual bool wants_flat() const { return false; }
  // Before a pass, after set_batch, on the caller's thread with the GIL: the time to look at the
  // module. `may_export`: whether no pass of any pipeline runs in this process.
  virtual void prepare(bool /*may_export*/) {}
  // How the stage, and its loss function, ran in the last pass: see Pipeline.stage_kinds.
  virtual std::string kind() const { return "module"; }
  virtual std::string loss_kind() const { return "module"; }
};

}  // namespace pipert

// BatchShares: a caller's batch, cut into microbatches for the stages of this process. REQUIRES the
// GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "autograd/main_gradients.h"
#include "bindings/batch.h"
#include "bindings/batch_body.h"
#include "runtime/pipeline_runtime.h"

namespace pipert {

struct StepArguments {
  pybind11::object args;    // a tuple, a list of tuples (is_cut), or None: not this rank's business
  pybind11::object kwargs;  // a dict, a list of dicts (is_cut), or None
  pybind11::object target;  // anything, a list (is_cut), or None
  pybind11::object loss_kwargs;  // a dict or None
  // By microbatch, what its loss counts; empty: as `weigh` says, or else its share of the rows. On
  // the last stage's rank alone.
  std::vector<double> loss_weights;
  // A function of the microbatches' targets, or without a target of their keyword arguments, that
  // says so; or None.
  pybind11::object weigh;
  bool is_cut = false;
  bool training = true;
  bool compute_loss = true;
  bool keep_outputs = false;
  std::int64_t step = 0;                             // training passes before this one
  std::vector<MainGradients::Entry> main_gradients;  // empty: gradients stay in .grad
  SharedState shared;                                // with other processes
};

class BatchShares {
 public:
  // `arguments` and `specs` must outlive it. ValueError for a batch that can't be cut.
  BatchShares(const StepArguments& arguments, const BatchSpecs& specs, int num_microbatches,
              bool has_first, bool has_last);

  // By microbatch, its share of the rows; empty where this process doesn't know it.
  const std::vector<double>& weights() const { return weights_; }
  // By microbatch, what its loss counts, where that isn't its share of the rows; else empty.
  // `keywords`: of the last stage.
  std::vector<double> loss_weights(const std::optional<std::vector<std::string>>& keywords) const;
  // Rows of the whole batch, as the stage there is given it: see Stage::begin. `keywords`: those
  // that it takes; nothing: any.
  std::int64_t rows(const StagePosition& position,
                    const std::optional<std::vector<std::string>>& keywords) const;

  // Pieces by microbatch, or none. They are flat if `flat` says so and they can be.
  std::vector<BatchPiece> args(bool flat) const {
    return cut(arguments_.args, specs_.args, "args", flat);
  }
  std::vector<BatchPiece> targets(bool flat) const {
    return cut(arguments_.target, specs_.target, "target", flat);
  }
  BatchPiece loss_kwargs(bool flat) const {
    return piece(arguments_.loss_kwargs, "loss_kwargs", flat);
  }
  // Those whose names are in `keywords`; nothing: all.
  std::vector<BatchPiece> kwargs(const std::optional<std::vector<std::string>>& keywords,
                                 bool flat) const;

 private:
  // Of the keyword arguments, those whose names are in `keywords`; in a list if they are cut.
  pybind11::object selected(const std::optional<std::vector<std::string>>& keywords) const;
  std::vector<BatchPiece> cut(const pybind11::object& value, const BatchSpec& spec,
                              const char* what, bool flat) const;
  std::vector<BatchPiece> entries(const pybind11::object& value, const char* what, bool flat) const;
  static BatchPiece piece(const pybind11::object& value, const char* what, bool flat);

  const StepArguments& arguments_;
  const BatchSpecs& specs_;
  int num_microbatches_;
  mutable PieceCache cache_;  // filled as pieces are asked for
  std::optional<std::int64_t> rows_;
  std::vector<double> weights_;
};

}  // namespace pipert

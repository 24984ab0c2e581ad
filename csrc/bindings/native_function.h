// NativeFunction: a Python callable (a stage's module, the loss function) beside the graphs that
// have been exported of it.
//
// Exporting changes what all of torch does in this process, so it never happens while ranks run: an
// input that no graph fits is noted, Python runs, and the graph is there for the next pass. The
// callable's state (attributes and modes of its modules, hooks, autocast, grad mode) is looked at
// once a pass; graphs belong to the state that they were exported in. Parameters stay the module's
// own: they are looked up again before each pass.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "stage/input_check.h"
#include "stage/native_graph.h"

namespace pipert {

struct ExportedCall {
  std::shared_ptr<NativeGraph> graph;
  std::shared_ptr<const Structure> output;  // as in Message
  InputCheck check;
  int state = 0;
  bool is_usable = true;  // in this pass
  // By parameter: the dict that has it, its name there, what the export knew of it.
  std::vector<std::pair<pybind11::object, pybind11::object>> sources;
  std::vector<TensorSignature> parameters;
};

class NativeFunction {
 public:
  enum class Role : std::uint8_t { kStage, kLoss };

  // `spread`: whether a tuple from the stage before becomes several positional arguments.
  NativeFunction(Role role, pybind11::object callable, bool spread);
  ~NativeFunction();  // takes the GIL
  NativeFunction(const NativeFunction&) = delete;
  NativeFunction& operator=(const NativeFunction&) = delete;

  // On the caller's thread, before a pass. Exports what was noted in earlier ones, if it may.
  // REQUIRES the GIL.
  void prepare(bool may_export);

  // On the rank's thread: the graph for this input; null where Python must run. Needs no GIL.
  ExportedCall* find(const NativeInput& input);
  // Python runs for another reason.
  void refuse(std::string reason) { reason_ = std::move(reason); }

  // "native", or "module: <why>", of the last pass.
  std::string kind() const;

 private:
  struct Noted {
    int state = 0;
    NativeInput structure;  // without tensors
    std::vector<TensorSignature> tensors;
    std::string failure;  // why there can be no graph; empty: not tried yet
  };

  void look_at_state();
  void refresh(ExportedCall& call) const;
  void export_noted(Noted& noted);
  ExportedCall make_graph(const Noted& noted, const NativeInput& example) const;
  ExportedCall* fitting(const NativeInput& input);

  Role role_;
  pybind11::object callable_;
  bool spread_;
  std::vector<pybind11::object> states_;
  int state_ = -1;          // of this pass; -1: nothing can be exported
  std::string refusal_;     // why; empty where state_ is not -1
  std::string unseen_;      // why there may be no graph yet in this pass
  bool may_export_ = true;  // in this pass
  std::vector<ExportedCall> calls_;
  std::vector<Noted> noted_;
  std::string reason_;  // why Python ran in this pass; empty: it didn't
  bool was_used_ = false;
};

}  // namespace pipert

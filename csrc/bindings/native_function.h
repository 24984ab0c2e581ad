// NativeFunction: a Python callable (a stage's module, the loss function) beside the graphs that
// have been exported of it.
//
// Exporting changes what all of torch does in this process, so it never happens while ranks run: an
// input that no graph fits is noted, Python runs, and the graph is there for the next pass. The
// callable's state (attributes and modes of its modules, hooks, autocast, grad mode) is looked at
// once a pass; graphs belong to the state that they were exported in.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "bindings/exported_call.h"

namespace pipert {

class NativeFunction {
 public:
  explicit NativeFunction(PythonFunction function);
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
    InputSignature input;
    std::string failure;  // why there can be no graph; empty: not tried yet
    bool has_graph = false;
    int num_passes = 0;  // that had such an input
    std::int64_t last_pass = 0;
  };
  struct State {
    pybind11::object value;
    std::vector<ExportedCall> calls;
    std::vector<Noted> noted;
  };

  void look_at_state();
  void export_noted(Noted& noted);
  ExportedCall* fitting(const NativeInput& input);
  std::string note(const NativeInput& input);  // gives why there is no graph

  PythonFunction function_;
  std::list<State> states_;  // the last used first
  State* state_ = nullptr;   // of this pass; null: nothing can be exported
  std::string refusal_;      // why; empty where state_ is not null
  std::string unseen_;       // why there may be no graph yet in this pass
  bool may_export_ = true;   // in this pass
  std::int64_t pass_ = 0;
  int num_exports_ = 0;
  std::string reason_;  // why Python ran in this pass; empty: it didn't
  bool was_used_ = false;
};

}  // namespace pipert

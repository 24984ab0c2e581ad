// ExportedCall: a graph that was exported of a Python callable, and which calls it stands for.
//
// Parameters stay the module's own: they are looked up again before each pass.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "stage/input_check.h"
#include "stage/native_graph.h"

namespace pipert {

// What is exported.
struct PythonFunction {
  enum class Role : std::uint8_t { kStage, kLoss };

  Role role = Role::kStage;
  pybind11::object callable;
  bool spread = false;  // whether a tuple from the stage before becomes several arguments
};

struct ExportedCall {
  std::shared_ptr<NativeGraph> graph;
  std::shared_ptr<const Structure> output;  // as in Message
  InputCheck check;
  bool is_usable = true;  // in this pass
  // By parameter: the dict that has it, its name there, what the export knew of it.
  std::vector<std::pair<pybind11::object, pybind11::object>> sources;
  std::vector<TensorSignature> parameters;

  // Looks the parameters up, before a pass. It isn't usable where they aren't what they were.
  // REQUIRES the GIL.
  void refresh();

  // Whether an input is also a parameter: the same object twice, which the export took for two.
  bool has_parameter_in(const std::vector<at::Tensor>& inputs) const;
};

// Tensors like those of the signature, as a stage sees them: what needs a gradient is no leaf.
NativeInput example_of(const InputSignature& signature);

// Exports a call with such an example. Throws what the export raises, and ValueError for a graph
// that can't stand for the call. REQUIRES the GIL, and that no pass runs in this process.
ExportedCall export_call(const PythonFunction& function, const NativeInput& example);

// Why there can be no graph for an input that has the tensor; empty: there may be one. Needs no
// GIL.
std::string reason_against(const at::Tensor& tensor);

}  // namespace pipert

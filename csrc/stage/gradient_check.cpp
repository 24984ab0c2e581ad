#include "stage/gradient_check.h"

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "device/tensor_type.h"

namespace pipert {
namespace {

c10::ScalarType dtype_of(const torch::autograd::InputMetadata& output) {
  return c10::typeMetaToScalarType(output.dtype());
}

std::string describe(const torch::autograd::InputMetadata& output) {
  if (output.is_nested_tensor()) return "a nested tensor";
  return type_of(dtype_of(output), C10_AS_INTARRAYREF_SLOW(output.shape_as_dim_vector()));
}

[[noreturn]] void refuse(const ForwardRun& forward, Gradients of, const std::string& expected,
                         const std::string& got) {
  const char* const why =
      forward.is_second
          ? " when it ran again: a stage that is recomputed must do the same both times"
          : "";
  throw ValueError(concat("the gradients of microbatch ", forward.microbatch,
                          " don't fit what stage ", forward.stage,
                          of == Gradients::kOfOutputs ? " returned" : " was given", why,
                          ": expected ", expected, ", got ", got));
}

// Whether an input needs a gradient that only this stage can bring.
bool is_depended_on(const InputNeeds& inputs) {
  const auto& [needs_gradient, structure, read_elsewhere] = inputs;
  if (read_elsewhere.empty())
    return std::find(needs_gradient.begin(), needs_gradient.end(), true) != needs_gradient.end();
  auto next = needs_gradient.begin();
  for (std::size_t i = 0; i < read_elsewhere.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(num_tensors(structure->children.at(i)));
    if (!read_elsewhere[i] && std::find(next, end, true) != end) return true;
    next = end;
  }
  return false;
}

}  // namespace

void check_gradient_flows(const BodyResult& result, const InputNeeds& inputs,
                          const StageBody& body) {
  bool could_flow = false;  // a stage may hand on numbers alone, and have weights that nobody uses
  for (const at::Tensor& tensor : result.tensors) {
    if (tensor.requires_grad()) return;
    could_flow = could_flow || torch::autograd::isDifferentiableType(tensor.scalar_type());
  }
  if (!could_flow) return;
  TORCH_CHECK_VALUE(!is_depended_on(inputs),
                    "the stage returned no tensor that requires a gradient, but its input requires "
                    "one: the stages before it would not train (was the output detached, or "
                    "computed under no_grad?)");
  TORCH_CHECK_VALUE(!body.trains(),
                    "the stage returned no tensor that requires a gradient, but has parameters "
                    "that do: they would not train (was the output detached, or computed under "
                    "no_grad?)");
}

void check_gradients(const ForwardRun& forward, Gradients of,
                     const std::vector<torch::autograd::Edge>& roots,
                     const std::vector<at::Tensor>& gradients) {
  if (gradients.size() != roots.size()) {
    refuse(forward, of, concat("one for each of ", roots.size(), " tensors"),
           concat(gradients.size(), " of them"));
  }
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) continue;
    if (!roots[i].is_valid()) {
      refuse(forward, of, concat("none for tensor ", i, ", which needs no gradient"),
             type_of(gradients[i]));
    }
    const auto& output = roots[i].function->input_metadata(roots[i].input_nr);
    if (gradients[i].scalar_type() == dtype_of(output) && output.is_same_shape(gradients[i]))
      continue;
    refuse(forward, of, concat(describe(output), " for tensor ", i), type_of(gradients[i]));
  }
}

}  // namespace pipert

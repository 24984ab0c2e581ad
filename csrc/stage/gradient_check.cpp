#include "stage/gradient_check.h"

#include <torch/csrc/autograd/function.h>

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

}  // namespace

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

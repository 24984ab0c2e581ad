// What a tensor is, as error messages say it: "float32[2, 8]".
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <string>

namespace pipert {

std::string type_of(c10::ScalarType dtype, c10::IntArrayRef sizes);
// "none" for an undefined tensor.
std::string type_of(const at::Tensor& tensor);

}  // namespace pipert

#include "device/tensor_type.h"

#include "base/error.h"

namespace pipert {

std::string type_of(c10::ScalarType dtype, c10::IntArrayRef sizes) {
  return concat(c10::getDtypeNames(dtype).first, sizes);
}

std::string type_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return "none";
  const auto dtype = tensor.scalar_type();
  if (tensor.is_nested()) return concat(c10::getDtypeNames(dtype).first, "[nested]");
  return type_of(dtype, tensor.sizes());
}

}  // namespace pipert

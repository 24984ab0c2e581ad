#include "runtime/arrival.h"

#include "base/error.h"
#include "device/tensor_type.h"

namespace pipert {

void Arrival::note(const Message& message) {
  noted_.clear();
  sizes_.clear();
  for (const at::Tensor& tensor : message.tensors) {
    if (tensor.defined() && !tensor.is_nested())
      sizes_.insert(sizes_.end(), tensor.sizes().begin(), tensor.sizes().end());
    noted_.push_back({tensor.defined(),
                      tensor.defined() ? tensor.scalar_type() : c10::ScalarType::Undefined,
                      sizes_.size()});
  }
}

std::string Arrival::describe(const Op& op) const {
  const Input& input = op.input;
  if (input.receiver == nullptr && input.slot < 0) return {};
  const char* const what = input.key.kind == MessageKind::kGradient ? "the gradients " : "";
  return concat("stage ", op.turn.stage, " got ", what, tensors(), " from stage ", input.key.stage,
                " on rank ", input.source);
}

std::string Arrival::tensors() const {
  std::string text;
  std::size_t begin = 0;
  for (const Noted& noted : noted_) {
    if (!text.empty()) text += ", ";
    const c10::IntArrayRef sizes(sizes_.data() + begin, noted.end - begin);
    text += noted.is_defined ? type_of(noted.dtype, sizes) : "none";
    begin = noted.end;
  }
  return text.empty() ? "no tensor" : text;
}

}  // namespace pipert

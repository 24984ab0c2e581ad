#include "runtime/arrival.h"

#include "base/error.h"
#include "base/index.h"
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

std::string Arrival::describe(const Op& op, const ValueExchange& values) const {
  if (op.wired != nullptr) return describe(*op.wired, values);
  const Input& input = op.input;
  if (input.receiver == nullptr && input.slot < 0) return {};
  const char* const what = input.key.kind == MessageKind::kGradient ? "the gradients " : "";
  return concat("stage ", op.turn.stage, " got ", what, tensors(0, noted_.size()), " from stage ",
                input.key.stage, " on rank ", input.source);
}

std::string Arrival::describe(const WiredRun& run, const ValueExchange& values) const {
  std::string text;
  std::size_t next = 0;
  for (std::size_t i = 0; i < run.given().size(); ++i) {
    const auto& [value, read, is_shared] = run.given()[i];
    const std::size_t end = next + values.num_given(run, i);
    if (read >= 0) {
      const Input& input = run.reads()[as_index(read)].input;
      text += concat(text.empty() ? "" : ", ", run.is_forward() ? "" : "the gradient of ",
                     values.name_of(value), " (", tensors(next, end), ") from stage ",
                     input.key.stage, " on rank ", input.source);
    }
    next = end;
  }
  return text.empty() ? text : concat("stage ", run.stage(), " got ", text);
}

std::string Arrival::tensors(std::size_t begin, std::size_t end) const {
  std::string text;
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t first = i == 0 ? 0 : noted_[i - 1].end;
    const c10::IntArrayRef sizes(sizes_.data() + first, noted_[i].end - first);
    text += text.empty() ? "" : ", ";
    text += noted_[i].is_defined ? type_of(noted_[i].dtype, sizes) : "none";
  }
  return text.empty() ? "no tensor" : text;
}

}  // namespace pipert

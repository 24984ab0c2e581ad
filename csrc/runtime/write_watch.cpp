#include "runtime/write_watch.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

namespace pipert {
namespace {

// Whether memory, sizes and strides are all that there is to it.
bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_quantized() && !tensor.is_conj() &&
         !tensor.is_neg() && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
}

at::Tensor counting_alias(const at::Tensor& tensor) {
  const c10::InferenceMode off(false);
  return at::empty({0}, tensor.options())
      .set_(tensor.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

}  // namespace

void WriteWatch::add(ValueId value, at::Tensor& tensor) {
  if (tensor.is_inference() && is_plain(tensor)) tensor = counting_alias(tensor);
  const c10::VariableVersion& version = tensor.unsafeGetTensorImpl()->version_counter();
  if (version.enabled()) watched_.push_back({value, version, version.current_version()});
}

std::optional<ValueId> WriteWatch::find_written() const {
  const auto found = std::find_if(watched_.begin(), watched_.end(), [](const Watched& watched) {
    return watched.version.current_version() != watched.before;
  });
  if (found == watched_.end()) return std::nullopt;
  return found->value;
}

}  // namespace pipert

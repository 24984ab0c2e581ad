#include "runtime/write_watch.h"

#include <algorithm>

namespace pipert {

void WriteWatch::add(ValueId value, const at::Tensor& tensor) {
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
